// The screen of a machine (VNC), through the console.
import {connect} from "./connect.js";

const screen = document.getElementById("screen");
const {default: RFB} = await import(screen.dataset.novnc);
let shown = null;

connect(screen, url => {
  screen.replaceChildren();
  shown = new RFB(screen, url, {shared: true});
  shown.scaleViewport = true;
  shown.background = "#000";
  return shown;
});
document.getElementById("console-keys").onclick = () => { if (shown) shown.sendCtrlAltDel(); };
