// A page that waits for an answer looks for it, and shows it when it is there; a comment that was kept leaves the field.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const waits = document.getElementById("waits");
  if (waits) {
    setInterval(async () => {
      try {
        const answer = await fetch(`/images/${waits.dataset.instance}/state`, { headers: { "X-Background": "yes" } });
        if (answer.ok && (await answer.json()).state !== waits.dataset.state) location.reload();
      } catch { /* the node is away: the next look may find it */ }
    }, 3000);
  }
});
document.addEventListener("htmx:afterRequest", (event) => {
  if (event.detail.successful && event.detail.pathInfo?.requestPath.endsWith("/reading")) document.getElementById("comment").value = "";
});
