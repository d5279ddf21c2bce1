"""verl's plug-in: the actor's forward is read where it runs, and verl's own metrics stand beside it.

verl loads `collapsewatch.verl.plugin` by its entry point `verl.plugins`, in every process. It does nothing unless
COLLAPSEWATCH_NAME names the run. No other module of ours imports verl.
"""
