"use strict";
const looks = JSON.parse(document.getElementById("looks").textContent);
const spans = [...document.querySelectorAll(".text span")];
const panel = document.querySelector("#panel > div");
let current = null;

const visible = (text) => JSON.stringify(text).slice(1, -1).replaceAll('\\"', '"').replaceAll(" ", "␣");
const percent = (share) => `${(100 * share).toPrecision(3)} %`;

function show(span) {
  if (current) current.classList.remove("on");
  current = span;
  span.classList.add("on");
  const [text, nats, probability, rank, alternatives] = looks[spans.indexOf(span)];
  const head = document.createElement("p");
  head.append(bold(text), ` cost ${nats.toFixed(3)} nats: probability ${percent(probability)}, rank ${rank.toLocaleString("en")}`);
  const list = document.createElement("ol");
  for (const [other, share] of alternatives) {
    const item = document.createElement("li");
    item.append(bold(other), ` ${percent(share)}`);
    list.append(item);
  }
  panel.replaceChildren(head, list);
  panel.parentElement.hidden = false;
}

function bold(text) {
  const made = document.createElement("b");
  made.textContent = visible(text);
  return made;
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") panel.parentElement.hidden = true;
});

for (const text of document.querySelectorAll(".text")) {
  text.addEventListener("pointerover", (event) => event.target.matches("span") && show(event.target));
  text.addEventListener("focusin", (event) => event.target.matches("span") && show(event.target));
  text.addEventListener("click", (event) => event.target.matches("span") && event.target.focus());
  text.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const next = step && spans[spans.indexOf(event.target) + step];
    if (next) {
      event.preventDefault();
      event.target.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    }
  });
}
