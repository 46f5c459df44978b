// The page works without this; with it, the state on it is always the current one.
"use strict";

const state = document.querySelector("[data-every]");
let shown = "";

async function refresh() {
  if (document.hidden) return;
  try {
    const answer = await fetch("/state");
    if (answer.status === 401) return location.reload();
    const text = answer.ok ? await answer.text() : shown;
    if (text !== shown) state.innerHTML = shown = text;
  } catch { /* the server is away for a moment */ }
}
if (state) setInterval(refresh, 1000 * state.dataset.every);

const form = document.querySelector("form[data-limit]");
form?.addEventListener("submit", (event) => {
  const [file] = form.elements.file.files, status = form.querySelector("[role=status]");
  const large = file.size > form.dataset.limit;
  status.hidden = false;
  status.textContent = large
    ? `This file has ${file.size} bytes, more than any submission. Choose another one.`
    : "The file is on its way and will be checked. Keep this page open.";
  if (large) event.preventDefault();
  else form.querySelector("button").disabled = true;
});
addEventListener("pageshow", () => form && (form.querySelector("button").disabled = false));

document.documentElement.classList.add("js");
addEventListener("click", async (event) => {
  const button = event.target.closest?.(".copy");
  if (!button) return;
  const command = button.parentElement.querySelector("pre");
  try {
    await navigator.clipboard.writeText(command.textContent);
    button.textContent = "Copied";
  } catch { // without TLS there is no clipboard: select it, to be copied by hand
    getSelection().selectAllChildren(command);
    button.textContent = "Selected";
  }
  setTimeout(() => (button.textContent = "Copy"), 2000);
});
