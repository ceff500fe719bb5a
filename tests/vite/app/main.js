import { io } from "socket.io-client";

import { greeting } from "./greeting.js";
import "./style.css";

const show = (text) => (document.querySelector("#greeting").textContent = text);
show(greeting);
import.meta.hot.accept("./greeting.js", (module) => show(module.greeting));
// A package in many files, which Vite bundles.
document.querySelector("#session").textContent = typeof io;
