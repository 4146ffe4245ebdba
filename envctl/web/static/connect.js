// A console connection: a ticket that counts once, then a websocket to the console. The machine's own address is never known here.
export async function connect(screen, open) {
  const state = document.getElementById("console-state");
  const again = document.getElementById("console-again");
  const say = text => { state.textContent = text; };
  async function begin() {
    again.hidden = true;
    say("Connecting");
    const form = new FormData();
    form.set("csrf", screen.dataset.csrf);
    const answer = await fetch(screen.dataset.ticket, {method: "POST", body: new URLSearchParams(form)}).catch(() => null);
    if (!answer || !answer.ok) {
      const told = answer ? await answer.json().catch(() => null) : null;
      say(told && told.error ? told.error.message : "The console does not answer");
      again.hidden = false;
      return;
    }
    const told = await answer.json();
    const url = new URL(told.path, location.href);
    url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    const opened = open(url.href, told);
    opened.addEventListener(opened instanceof WebSocket ? "open" : "connect", () => say("Connected"));
    opened.addEventListener(opened instanceof WebSocket ? "close" : "disconnect", event => {
      say(event.reason ? `Ended: ${event.reason}` : "The connection has ended");
      again.hidden = false;
    });
  }
  again.onclick = begin;
  await begin();
}
