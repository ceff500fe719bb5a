// A Socket.IO server that serves its own client, a page for it, and events.
//
// Arguments: the port. Tells when it listens.

import { createServer } from "node:http";

import { Server } from "socket.io";

const PAGE = `<!doctype html>
<title>Socket.IO</title>
<p id="transport"></p><p id="echo"></p><p id="pushed"></p><p id="events"></p>
<script src="/socket.io/socket.io.js"></script>
<script>
  const show = (id, text) => (document.getElementById(id).textContent = text);
  const socket = io();
  socket.on("connect", () => {
    const { engine } = socket.io;
    show("transport", engine.transport.name);
    engine.on("upgrade", (transport) => show("transport", transport.name));
  });
  socket.on("pushed", (text) => show("pushed", text));
  function ask(value) {
    socket.emit("echo", value, (answer) => show("echo", answer));
  }
  const stream = new EventSource("/events");
  const seen = [];
  stream.onmessage = ({ data }) => show("events", (seen.push(data), seen.join()));
</script>`;

const streams = new Set();
let last = 0;
const routes = {
    "GET /": (_, response) => response.setHeader("Content-Type", "text/html").end(PAGE),
    "GET /favicon.ico": (_, response) => response.writeHead(204).end(),
    "GET /events": (request, response) => {
        response.writeHead(200, { "Content-Type": "text/event-stream" });
        const id = request.headers["last-event-id"];
        response.write(`retry: 50\ndata: ${id === undefined ? "new" : `after ${id}`}\n\n`);
        streams.add(response);
        response.on("close", () => streams.delete(response));
    },
    "POST /event": (_, response) => {
        last += 1;
        for (const stream of streams) stream.write(`id: ${last}\ndata: event ${last}\n\n`);
        server.emit("pushed", `event ${last}`);
        response.end(`${streams.size}`);
    },
    "POST /end": (_, response) => {
        for (const stream of streams) stream.end();
        response.end();
    },
    "POST /echo": (request, response) => request.pipe(response),
};
const http = createServer((request, response) => {
    const route = routes[`${request.method} ${request.url}`];
    if (route) route(request, response);
    else response.writeHead(404).end();
});
const server = new Server(http);
server.on("connection", (socket) => {
    socket.on("echo", (value, answer) => answer(value));
});
http.listen(Number(process.argv[2]), "127.0.0.1", () => console.log("listening"));
