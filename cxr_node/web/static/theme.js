// Sets the theme before anything is drawn: dark, unless this browser chose light.
"use strict";
try {
  if (localStorage.getItem("cxr-theme") === "light") document.documentElement.dataset.theme = "light";
} catch { /* a browser that keeps nothing stays dark */ }
