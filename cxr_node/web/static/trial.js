// Try a file: drop or choose it, upload it with progress, and show what comes back.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const drop = document.querySelector(".drop");
  const input = document.getElementById("file");
  const form = document.getElementById("trial-form");
  const progress = form.querySelector("progress");
  const stage = document.getElementById("stage");
  const answer = document.getElementById("answer");
  const { uploading, analysing, large, failed } = form.dataset;

  function say(text, isBusy) {
    stage.textContent = text;
    progress.hidden = !isBusy;
    drop.setAttribute("aria-busy", String(isBusy));
    input.disabled = isBusy;
  }

  function send(file) {
    answer.replaceChildren();
    if (file.size > Number(form.dataset.most)) { say(large, false); return; }
    const request = new XMLHttpRequest();
    const content = new FormData();
    content.append("file", file, file.name);
    request.open("POST", form.action);
    request.setRequestHeader("X-CSRF-Token", form.dataset.csrf);
    request.upload.onprogress = (event) => { if (event.lengthComputable) progress.value = event.loaded / event.total; };
    request.upload.onload = () => { progress.removeAttribute("value"); say(analysing, true); };
    request.onload = () => {
      say("", false);
      if (request.getResponseHeader("Content-Type")?.startsWith("text/html")) {
        answer.innerHTML = request.responseText; // a part of this page, made and escaped by its own server
        htmx.process(answer);
        answer.querySelector("h2")?.focus();
      } else say(failed.replace("{reason}", request.responseText.trim().slice(0, 300)), false);
    };
    request.onerror = () => say(document.getElementById("trouble").dataset.text, false);
    say(uploading, true);
    progress.value = 0;
    request.send(content);
    input.value = "";
  }

  input.addEventListener("change", () => { if (input.files.length) send(input.files[0]); });
  for (const name of ["dragenter", "dragover"]) {
    drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
  }
  for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files.length && !input.disabled) send(event.dataTransfer.files[0]);
  });
});
