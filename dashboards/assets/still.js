// Takes the still picture of a page away once the page itself is drawn.
(function () {
  "use strict";

  const still = document.getElementById("cw-still");
  if (!still) return;
  const watch = new MutationObserver(() => {
    const page = document.getElementById("page");
    const built = page && page.querySelector("[class^=cw-]");
    if (!built || [...page.querySelectorAll(".dash-graph")].some((graph) => !graph.querySelector(".main-svg"))) return;
    watch.disconnect();
    still.remove();
  });
  watch.observe(document.body, { childList: true, subtree: true });
})();
