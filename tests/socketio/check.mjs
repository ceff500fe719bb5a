// Socket.IO and SignalR, servers and clients as they come, through one ws-proxy.
//
// Arguments: the program. Prints a line for each step, and exits with 1 at the first failure.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { createInterface } from "node:readline";

import signalr from "@microsoft/signalr";
import { Server } from "socket.io";
import { io } from "socket.io-client";
import { WebSocketServer } from "ws";

const PATIENCE = 20_000;
const program = process.argv[2];

/// Fails where a promise takes too long.
function inTime(promise, what) {
    let timer;
    const late = new Promise((_, reject) => {
        timer = setTimeout(() => reject(new Error(`in vain waited for ${what}`)), PATIENCE);
    });
    return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

async function listen(server) {
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return server.address().port;
}

/// A Socket.IO server that echoes, and tells its name.
async function socketIo(name, options = {}) {
    const http = createServer();
    const server = new Server(http, { pingInterval: 1_000, ...options });
    server.on("connection", (socket) => {
        socket.on("echo", (value, answer) => answer(value, name));
    });
    return { port: await listen(http), close: () => server.close() };
}

/// A server of SignalR's negotiation (version 1) and of its JSON protocol over all its transports.
/// Its hub echoes, tells something by a message of its own, and closes the connection.
async function signalR(name) {
    const END = "\x1e";
    const POLL = 200;
    const sessions = new Map();

    /// Ends a poll with what there is for it: messages, nothing (200) or the end (204).
    const answerPoll = (session) => {
        const { poll, waiting } = session;
        if (poll === undefined) return;
        session.poll = undefined;
        clearTimeout(session.timer);
        poll.writeHead(waiting.length === 0 && session.ended ? 204 : 200).end(waiting.join(""));
        session.waiting = [];
    };
    const send = (session, message) => {
        const record = JSON.stringify(message) + END;
        if (session.transport === "ServerSentEvents") {
            session.stream.write(`data: ${record}\r\n\r\n`);
        } else if (session.transport === "WebSockets") {
            session.stream.send(record);
        } else {
            session.waiting.push(record);
            answerPoll(session);
        }
    };
    const methods = {
        Echo: (_, value) => value,
        // Later than its own completion; by long polling, after some polls with nothing.
        Tell: (session, value) => {
            session.afterEmpty = { left: 3, message: { type: 1, target: "told", arguments: [value] } };
            if (session.transport !== "LongPolling") {
                setTimeout(() => send(session, session.afterEmpty.message), POLL);
            }
        },
        // A poll has a status for it, the others a message.
        Close: (session) => {
            setImmediate(() => {
                session.ended = true;
                if (session.transport === "LongPolling") return answerPoll(session);
                send(session, { type: 7 });
                session.stream[session.transport === "WebSockets" ? "close" : "end"]();
            });
        },
    };
    const receive = (session, text) => {
        for (const record of text.split(END).filter((record) => record !== "")) {
            const { type, protocol, invocationId, target, arguments: values } = JSON.parse(record);
            if (protocol === "json") send(session, {});
            if (type === 1) {
                const result = methods[target](session, ...values);
                send(session, { type: 3, invocationId, result });
            }
        }
    };
    /// The routes of a session; the first GET of a long poll is answered at once.
    const routes = {
        GET: (session, request, response) => {
            if (request.headers.accept === "text/event-stream") {
                session.transport = "ServerSentEvents";
                session.stream = response;
                response.writeHead(200, { "Content-Type": "text/event-stream" });
                response.write(":\r\n\r\n");
                return;
            }
            const isFirst = session.transport === undefined;
            session.transport = "LongPolling";
            session.poll = response;
            response.on("close", () => session.poll === response && (session.poll = undefined));
            if (isFirst || session.waiting.length > 0 || session.ended) return answerPoll(session);
            session.timer = setTimeout(() => {
                session.empty += 1;
                answerPoll(session);
                if (session.afterEmpty && (session.afterEmpty.left -= 1) === 0) {
                    send(session, session.afterEmpty.message);
                }
            }, POLL);
        },
        POST: (session, _, response, body) => {
            receive(session, body);
            response.end();
        },
        DELETE: (session, _, response) => {
            session.deleted = true;
            session.ended = true;
            answerPoll(session);
            response.writeHead(202).end();
        },
    };
    const sessionOf = ({ url }) => sessions.get(new URL(url, "http://a").searchParams.get("id"));
    const http = createServer(async (request, response) => {
        let body = "";
        for await (const part of request) body += part;
        if (request.url.startsWith("/hub/negotiate?")) {
            assert.equal(request.method, "POST");
            const connectionToken = `token-of-${name}-${sessions.size}`;
            const connectionId = `id-of-${name}-${sessions.size}`;
            sessions.set(connectionToken, { connectionId, waiting: [], empty: 0 });
            const availableTransports = ["WebSockets", "ServerSentEvents", "LongPolling"]
                .map((transport) => ({ transport, transferFormats: ["Text"] }));
            response.setHeader("Content-Type", "application/json");
            const negotiated = { negotiateVersion: 1, connectionId, connectionToken };
            response.end(JSON.stringify({ ...negotiated, availableTransports }));
            return;
        }
        const session = sessionOf(request);
        if (session === undefined) return response.writeHead(404).end();
        routes[request.method](session, request, response, body);
    });
    new WebSocketServer({ server: http }).on("connection", (socket, request) => {
        const session = sessionOf(request);
        session.transport = "WebSockets";
        session.stream = socket;
        socket.on("message", (data) => receive(session, data.toString()));
    });
    return { port: await listen(http), sessions, close: () => http.close() };
}

/// The program with sections in front of these backends; gives their ports in order.
async function startProxy(sections) {
    const tables = sections.map(({ backends, more = "" }) =>
        `[[ws_proxy]]\nbind = "127.0.0.1:0"\nplain_http = "forward"\nhost = "preserve"\n` +
        `backends = [${backends.map(({ port }) => `"127.0.0.1:${port}"`)}]\n${more}\n`);
    writeFileSync("check.toml", tables.join("\n"));
    const child = spawn(program, ["--config", "check.toml"], { stdio: ["ignore", "ignore", "pipe"] });
    process.on("exit", () => child.kill("SIGKILL"));
    const ports = [];
    const lines = [];
    const listening = new Promise((resolve) => {
        createInterface({ input: child.stderr }).on("line", (line) => {
            lines.push(line);
            const port = line.match(/event=listening .*address=127\.0\.0\.1:(\d+)/)?.[1];
            if (port !== undefined && ports.push(port) === sections.length) resolve();
        });
    });
    await inTime(listening, "the proxy to listen");
    return { child, ports, lines };
}

async function connect(port, options = {}) {
    const client = io(`http://127.0.0.1:${port}`, { forceNew: true, reconnection: false, ...options });
    const failed = once(client, "connect_error").then(([error]) => {
        throw error;
    });
    failed.catch(() => {});
    await inTime(Promise.race([once(client, "connect"), failed]), "a connection");
    return client;
}

async function upgraded(client) {
    const { engine } = client.io;
    if (engine.transport.name !== "websocket") await inTime(once(engine, "upgrade"), "an upgrade");
    assert.equal(engine.transport.name, "websocket");
}

/// Asks for an echo; gives the name of the server.
async function echo(client, value) {
    const [echoed, name] = await inTime(
        new Promise((resolve) => client.emit("echo", value, (...values) => resolve(values))),
        "an echo",
    );
    assert.deepEqual(echoed, value);
    return name;
}

const [one, other] = [await socketIo("one"), await socketIo("other")];
const withCookies = [await socketIo("one", { cookie: true }), await socketIo("other", { cookie: true })];
const hubs = [await signalR("one"), await signalR("other")];
const proxy = await startProxy([
    { backends: [one] },
    { backends: [one, other], more: 'balance = "hash"\nhash_on = "query:key"' },
    { backends: [one, other], more: 'balance = "hash"\nhash_on = "query:sid"' },
    { backends: withCookies, more: 'balance = "hash"\nhash_on = "cookie:io"' },
    {
        backends: hubs,
        more: 'balance = "hash"\nhash_on = "query:id"\nlearn_from = "json:connectionToken"',
    },
]);
const [single, byKey, bySid, byCookie, forHubs] = proxy.ports;

const client = await connect(single);
for (let count = 0; count < 50; count += 1) await echo(client, { count });
await upgraded(client);
for (let count = 0; count < 50; count += 1) await echo(client, { count });
client.close();
console.log("Socket.IO: polling, then an upgrade");

const poller = await connect(single, { transports: ["polling"] });
await echo(poller, "x".repeat(700_000));
await echo(poller, Buffer.alloc(500_000, 7));
// Longer than two intervals of its pings, so that polls have waited for them.
for (let count = 0; count < 30; count += 1) {
    await echo(poller, count);
    await new Promise((resolve) => setTimeout(resolve, 100));
}
poller.close();
console.log("Socket.IO: polling alone, with large messages");

const direct = await connect(single, { transports: ["websocket"] });
await echo(direct, "at once");
direct.close();
console.log("Socket.IO: WebSockets alone");

/// Lets 16 clients each poll and then upgrade; they come to two servers, and each stays at one.
async function staysAtOne(port, options) {
    const clients = Array.from({ length: 16 }, async (_, key) => {
        const client = await connect(port, options(key));
        const before = await echo(client, key);
        // More polls, which may come on other connections.
        await Promise.all(Array.from({ length: 4 }, (_, count) => echo(client, count)));
        await upgraded(client);
        assert.equal(await echo(client, key), before);
        client.close();
        return before;
    });
    const names = await Promise.all(clients);
    assert.equal(new Set(names).size, 2, `all came to ${names[0]}`);
}
await staysAtOne(byKey, (key) => ({ query: { key } }));
console.log("Socket.IO: two backends, each session at one, by a parameter of the client");
await staysAtOne(bySid, () => ({}));
console.log("Socket.IO: two backends, each session at one, by its id");
await staysAtOne(byCookie, () => ({ withCredentials: true }));
console.log("Socket.IO: two backends, each session at one, by its cookie");

for (const name of ["WebSockets", "ServerSentEvents", "LongPolling"]) {
    const open = async () => {
        const connection = new signalr.HubConnectionBuilder()
            .withUrl(`http://127.0.0.1:${forHubs}/hub`, { transport: signalr.HttpTransportType[name] })
            .configureLogging(signalr.LogLevel.Warning)
            .build();
        await inTime(connection.start(), `SignalR to start with ${name}`);
        const sessions = hubs.flatMap((hub) => [...hub.sessions.values()]);
        const session = sessions.find((one) => one.connectionId === connection.connectionId);
        assert.equal(session.transport, name);
        const closed = new Promise((resolve) => connection.onclose(resolve));
        return { connection, session, closed };
    };

    const { connection, session, closed } = await open();
    for (const value of [...Array(20).keys(), "x".repeat(300_000)]) {
        assert.equal(await inTime(connection.invoke("Echo", value), "an echo"), value);
    }
    const told = new Promise((resolve) => connection.on("told", resolve));
    await inTime(connection.invoke("Tell", name), "a completion");
    assert.equal(await inTime(told, `a message of the server by ${name}`), name);
    await inTime(connection.stop(), "SignalR to stop");
    assert.equal(await inTime(closed, "the end"), undefined);
    assert.equal(session.deleted, name === "LongPolling" ? true : undefined);
    assert.equal(session.empty >= 3, name === "LongPolling");

    const other = await open();
    await inTime(other.connection.invoke("Close"), "a completion");
    assert.equal(await inTime(other.closed, `the server's end by ${name}`), undefined);
    console.log(`SignalR: negotiation, then ${name} at the same one of two backends`);
}
assert.deepEqual(hubs.map((hub) => hub.sessions.size), [3, 3]);

const last = [await connect(single), await connect(single, { transports: ["polling"] })];
await upgraded(last[0]);
const ended = last.map((client) => inTime(once(client, "disconnect"), "a disconnect"));
proxy.child.kill("SIGTERM");
const [code] = await inTime(once(proxy.child, "exit"), "the proxy to stop");
assert.equal(code, 0);
await Promise.all(ended);
console.log("Socket.IO: a drain disconnects the clients");

const faults = proxy.lines.filter((line) => /level=(warn|error)/.test(line));
assert.deepEqual(faults, []);
for (const server of [one, other, ...withCookies, ...hubs]) server.close();
process.exit(0);
