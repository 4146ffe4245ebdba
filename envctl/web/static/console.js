// What the pages do beyond plain HTML: times that stay true, questions as dialogs, copying, the live log. All pages work without it,
// but for the live log and the consoles. No framework; htmx refreshes the parts that have hx-get.
"use strict";

const units = [[31536000, "y"], [86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

// As shown.duration of the server writes it; a test compares the two.
function duration(seconds) {
  const rest = Math.max(0, seconds);
  for (let index = 0; index < units.length; index++) {
    const [length, unit] = units[index];
    if (rest < length && unit !== "s") continue;
    const whole = Math.floor(rest / length);
    if ((unit === "h" || unit === "d" || unit === "y") && whole < 10) {
      const part = Math.floor((rest - whole * length) / units[index + 1][0]);
      if (part) return `${whole} ${unit} ${part} ${units[index + 1][1]}`;
    }
    return `${whole} ${unit}`;
  }
}

function ago(moment, now) {
  if (Math.abs(now - moment) < 1) return "now";
  return moment < now ? `${duration(now - moment)} ago` : `in ${duration(moment - now)}`;
}

// The server's clock counts: a laptop that is an hour wrong must not show a backup as an hour late.
const skew = Number(document.documentElement.dataset.now || Date.now() / 1000) - Date.now() / 1000;
const serverNow = () => Date.now() / 1000 + skew;

function refreshTimes(root = document) {
  for (const time of root.querySelectorAll("time[data-ago]")) {
    time.textContent = ago(Date.parse(time.dateTime) / 1000, serverNow());
  }
}
setInterval(refreshTimes, 10000);

function offerCopying(root = document) {
  for (const button of root.querySelectorAll("[data-copy]")) {
    if (!navigator.clipboard) continue;
    button.hidden = false;
    button.onclick = async () => {
      await navigator.clipboard.writeText(button.parentElement.querySelector("pre").textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    };
  }
}

// A question is a page; here it is shown as a dialog. Where that fails the link leads to the page.
document.addEventListener("click", async event => {
  const link = event.target.closest("[data-dialog]");
  if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
    event.preventDefault();
    const answer = await fetch(link.dataset.dialog, {headers: {"HX-Request": "true"}}).catch(() => null);
    if (!answer || !answer.ok) { location.assign(link.href); return; }
    const dialog = document.createElement("dialog");
    dialog.innerHTML = await answer.text();
    dialog.setAttribute("aria-labelledby", "dialog-title");
    const title = dialog.querySelector("h2");
    if (title) title.id = "dialog-title";
    document.body.append(dialog);
    dialog.addEventListener("close", () => { dialog.remove(); link.focus(); });
    dialog.showModal();
    return;
  }
  const closing = event.target.closest("dialog [data-close]");
  if (closing) { event.preventDefault(); closing.closest("dialog").close(); }
});

// A part that refreshes itself waits while somebody uses it, or nobody looks.
document.addEventListener("htmx:beforeRequest", event => {
  const part = event.target;
  if (!part.matches("[data-calm]")) return;
  if (document.hidden || document.querySelector("dialog[open]") || part.contains(document.activeElement)) event.preventDefault();
});
document.addEventListener("htmx:afterSwap", () => { refreshTimes(); offerCopying(); });

// What changes a form's own look: a part that belongs to one choice.
document.addEventListener("change", event => {
  const form = event.target.closest("[data-defaults]");
  if (!form || event.target.name !== "template") return;
  for (const name of ["cores", "memory_mib", "disk_gib", "directories"]) {
    const field = form.elements[name];
    if (!field) continue;
    field.value = event.target.dataset[name];
    const max = event.target.dataset[name + "_max"];
    if (max) field.max = max;
  }
});

// The live log. Ids of events are ids of rows: EventSource sends the last one when it comes back, and nothing is lost or doubled.
function follow(log) {
  const state = document.getElementById("log-state");
  const say = text => { if (state) state.textContent = text; };
  let last = Number(log.dataset.after);
  let failures = 0;
  log.scrollTop = log.scrollHeight;

  function add(line) {
    if (line.id <= last) return;
    last = line.id;
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    const item = document.createElement("li");
    const time = document.createElement("time");
    const text = document.createElement("span");
    const moment = new Date(line.at * 1000).toISOString();
    item.className = "level-" + line.level;
    time.dateTime = moment;
    time.title = moment.slice(0, 19).replace("T", " ") + " UTC";
    time.textContent = moment.slice(11, 19);
    text.textContent = line.text;
    item.append(time, text);
    log.append(item);
    while (log.children.length > 2000) log.firstElementChild.remove();
    if (atEnd) log.scrollTop = log.scrollHeight;
  }
  function changed() {
    for (const part of document.querySelectorAll("[hx-trigger^=changed]")) htmx.trigger(part, "changed");
  }

  async function poll(mark) {
    const answer = await fetch(`${log.dataset.poll}?after=${last}`).catch(() => null);
    if (answer && answer.status === 401) { say("You are signed out"); return; }
    let newer = mark;
    if (answer && answer.ok) {
      const told = await answer.json();
      told.lines.forEach(add);
      newer = told.mark;
      if (mark !== undefined && newer !== mark) changed();
      say("Following, every 3 s");
    } else {
      say("The console does not answer; trying again");
    }
    setTimeout(poll, 3000, newer);
  }

  const source = new EventSource(`${log.dataset.events}?after=${last}`);
  source.addEventListener("open", () => { failures = 0; say("Following"); });
  source.addEventListener("line", event => add(JSON.parse(event.data)));
  source.addEventListener("state", changed);
  source.addEventListener("end", event => {
    source.close();
    say(JSON.parse(event.data).reason === "signed-out" ? "You are signed out" : "The log has ended");
  });
  source.addEventListener("error", () => {
    failures += 1;
    say("The console does not answer; trying again");
    // A proxy that does not let streams through: ask for the lines instead.
    if (source.readyState === EventSource.CLOSED || failures >= 4) { source.close(); poll(); }
  });
  addEventListener("pagehide", () => source.close());
  addEventListener("pageshow", event => { if (event.persisted) location.reload(); });
}

function begin() {
  offerCopying();
  const log = document.querySelector("[data-events]");
  if (log) follow(log);
}
if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin); else begin();
