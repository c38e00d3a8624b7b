// What all pages share: times in this computer's zone, the theme, dialogs, links to copy.
"use strict";

const UNITS = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];

function age(seconds) {
  let rest = Math.max(0, Math.round(seconds));
  const parts = [];
  for (const [name, length] of UNITS) {
    const count = Math.floor(rest / length);
    rest -= count * length;
    if (count || parts.length) parts.push([count, name]);
  }
  return parts.slice(0, 2).filter(([count]) => count).map(([count, name]) => `${count} ${name}`).join(" ") || "0 s";
}

function two(number) { return String(number).padStart(2, "0"); }

function localTime(element) {
  const at = new Date(element.dateTime);
  if (Number.isNaN(at.getTime())) return;
  if ("ago" in element.dataset) {
    element.textContent = `${age((Date.now() - at) / 1000)} ago`;
  } else if ("age" in element.dataset) {
    element.textContent = age((Date.now() - at) / 1000);
  } else if (!("local" in element.dataset)) {
    element.dataset.local = "";
    const seconds = "seconds" in element.dataset ? `:${two(at.getSeconds())}` : "";
    element.textContent =
      `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${two(at.getHours())}:${two(at.getMinutes())}${seconds}`;
  }
}

function localTimes(root) { for (const element of root.querySelectorAll("time[datetime]")) localTime(element); }

function prepare(root) {
  localTimes(root);
  // times that people type are those of their clock: the server is told how far that is ahead of UTC
  for (const field of root.querySelectorAll("input[name='offset']")) field.value = String(-new Date().getTimezoneOffset());
}

document.addEventListener("DOMContentLoaded", () => {
  prepare(document);
  setInterval(() => localTimes(document), 5000);
});
document.addEventListener("htmx:afterSettle", (event) => {
  prepare(event.target.parentElement ?? document);
  const dialog = document.getElementById("dialog");
  if (event.target === dialog && !dialog.open) dialog.showModal();
});

// empty fields stay out of addresses that people send to each other
document.addEventListener("submit", (event) => {
  if (event.target.method !== "get" || !event.target.matches(".filters")) return;
  const isTimed = [...event.target.querySelectorAll("[type='datetime-local']")].some((field) => field.value);
  for (const field of event.target.elements) {
    if (field.name && (!field.value || (field.name === "offset" && !isTimed))) field.disabled = true;
  }
});
window.addEventListener("pageshow", () => {
  for (const field of document.querySelectorAll(".filters :disabled")) field.disabled = false;
});

document.addEventListener("click", (event) => {
  const target = event.target.closest("button, a");
  if (!target) return;
  if (target.id === "theme") {
    const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    try { localStorage.setItem("cxr-theme", theme); } catch { /* it lasts as long as the page */ }
    document.dispatchEvent(new CustomEvent("cxr:theme"));
  } else if ("copy" in target.dataset) {
    navigator.clipboard?.writeText(new URL(target.dataset.copy || location.href, location.href).href).then(() => {
      const label = target.querySelector("span");
      const before = label.textContent;
      label.textContent = target.dataset.done;
      setTimeout(() => { label.textContent = before; }, 1600);
    });
  } else if ("close" in target.dataset) {
    document.getElementById("dialog").close();
    if (target.dataset.close === "reload") location.reload();
  }
});

for (const name of ["htmx:sendError", "htmx:responseError", "htmx:sseError"]) {
  document.addEventListener(name, (event) => {
    const box = document.getElementById("trouble");
    const said = event.detail?.xhr?.responseText;
    box.textContent = said && said.length < 400 && !said.startsWith("<") && !said.startsWith("{") ? said : box.dataset.text;
    box.hidden = false;
  });
}
for (const name of ["htmx:sseOpen", "htmx:afterOnLoad"]) {
  document.addEventListener(name, (event) => {
    if (!(event.detail?.xhr?.status >= 400)) document.getElementById("trouble").hidden = true;
  });
}
