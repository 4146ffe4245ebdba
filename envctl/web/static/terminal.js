// The terminal of a machine, through the console. xterm.js writes its styles into <style> elements, which the policy of our pages
// refuses; here they become constructed style sheets, which it allows.
import {connect} from "./connect.js";

const create = document.createElement.bind(document);
document.createElement = (name, options) => {
  if (name.toLowerCase() !== "style") return create(name, options);
  const stand = create("template");
  const sheet = new CSSStyleSheet();
  document.adoptedStyleSheets.push(sheet);
  Object.defineProperty(stand, "textContent", {set: text => sheet.replaceSync(text), get: () => ""});
  Object.defineProperty(stand, "sheet", {get: () => sheet});
  stand.remove = () => {
    document.adoptedStyleSheets = document.adoptedStyleSheets.filter(one => one !== sheet);
    Element.prototype.remove.call(stand);
  };
  return stand;
};

const screen = document.getElementById("screen");
const {Terminal} = await import(screen.dataset.xterm);
const {FitAddon} = await import(screen.dataset.fit);
const terminal = new Terminal({cursorBlink: true, fontSize: 14, scrollback: 5000, screenReaderMode: screen.dataset.reader === "1"});
const fit = new FitAddon();
terminal.loadAddon(fit);
terminal.open(screen);
fit.fit();
new ResizeObserver(() => fit.fit()).observe(screen);

let socket = null;
const encoder = new TextEncoder();
function size({cols, rows}) {
  if (socket && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({columns: cols, rows}));
}
terminal.onResize(size);
terminal.onData(text => { if (socket && socket.readyState === WebSocket.OPEN) socket.send(encoder.encode(text)); });

connect(screen, url => {
  terminal.reset();
  socket = new WebSocket(url);
  socket.binaryType = "arraybuffer";
  socket.onmessage = event => terminal.write(typeof event.data === "string" ? event.data : new Uint8Array(event.data));
  socket.onopen = () => { size(terminal); terminal.focus(); };
  return socket;
});
