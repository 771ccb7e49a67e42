"use strict";
document.documentElement.classList.add("js");

// The search: a slider picks a generation of the table.
for (const figure of document.querySelectorAll(".search")) {
  const rows = [...figure.querySelectorAll("tbody tr")], slider = figure.querySelector("input");
  const says = figure.querySelector("output"), cursor = figure.querySelector(".cursor");
  const pick = () => {
    const row = rows[slider.value - 1], cells = [...row.children].map((cell) => cell.textContent);
    rows.forEach((other) => other.classList.toggle("on", other === row));
    cursor.setAttribute("x1", row.dataset.x + "%");
    cursor.setAttribute("x2", row.dataset.x + "%");
    says.textContent = `${cells[0]} of ${rows.length}: best ${cells[1]}, mean ${cells[2]}, spread ${cells[3]}`;
  };
  slider.addEventListener("input", pick);
  pick();
}

// The tree: one panel at a time.
const panels = [...document.querySelectorAll(".panel")], boxes = [...document.querySelectorAll(".tree a")];
const open = (id) => {
  panels.forEach((panel) => panel.classList.toggle("on", panel.id === id));
  boxes.forEach((box) => box.classList.toggle("on", box.getAttribute("href") === "#" + id));
};
for (const link of document.querySelectorAll('#tree a[href^="#"]')) {
  link.addEventListener("click", (event) => { event.preventDefault(); open(link.getAttribute("href").slice(1)); });
}
const asked = panels.find((panel) => "#" + panel.id === location.hash) || document.querySelector(".panel.last");
if (asked) open(asked.id);

// Buttons that copy; without the right to write the clipboard the text is selected.
for (const button of document.querySelectorAll("button")) {
  button.addEventListener("click", async () => {
    const code = button.closest(".copied").querySelector("code");
    let done = true;
    try { await navigator.clipboard.writeText(code.textContent); } catch {
      const range = document.createRange();
      range.selectNodeContents(code);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      try { done = document.execCommand("copy"); } catch { done = false; }
    }
    button.textContent = done ? "copied" : "selected";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
}
