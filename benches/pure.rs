//! Micro-benchmarks of the pure parts: `cargo bench --features internals --bench pure`.

use std::time::Instant;

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use ws_proxy::{Balance, internals};

fn main() {
    divan::main();
}

/// What a browser sends, with a cookie of the usual length.
const REQUEST: &str = "GET /socket/websocket?vsn=2.0.0 HTTP/1.1\r\nHost: app.example.com\r\nConnection: keep-alive, Upgrade\r\n\
    Pragma: no-cache\r\nCache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n\
    Upgrade: websocket\r\nOrigin: https://app.example.com\r\nSec-WebSocket-Version: 13\r\nAccept-Encoding: gzip, deflate, br, zstd\r\n\
    Accept-Language: en-GB,en;q=0.9\r\nCookie: session=SFMyNTY.g3QAAAABbQAAAAtfY3NyZl90b2tlbm0AAAAYdGhlIHNhbXBsZSBub25jZQ\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\
    X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: https\r\n\r\n";

const ANSWER: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\
    Date: Sun, 22 Nov 2026 20:00:00 GMT\r\n\r\n";

fn bench(bencher: Bencher, bytes: &'static str, work: impl Fn(&[u8]) + Sync) {
    bencher.counter(BytesCount::of_str(bytes)).bench(|| work(black_box(bytes.as_bytes())));
}

/// The end of a head.
#[divan::bench]
fn scan(bencher: Bencher) {
    bench(bencher, REQUEST, |head| {
        black_box(internals::scan(head));
    });
}

/// A head, judged.
#[divan::bench]
fn judge(bencher: Bencher) {
    bench(bencher, REQUEST, |head| {
        black_box(internals::judge(head, false));
    });
}

/// A head, judged and written anew for the backend.
#[divan::bench]
fn forward(bencher: Bencher) {
    bench(bencher, REQUEST, |head| drop(black_box(internals::forward(head))));
}

/// The backend's 101, verified and written anew for the client; the request is judged once more for it.
#[divan::bench]
fn answer(bencher: Bencher) {
    bench(bencher, ANSWER, |answer| {
        drop(black_box(internals::answer(REQUEST.as_bytes(), answer, false)))
    });
}

/// A thousand small messages of a client, followed.
#[divan::bench]
fn frames(bencher: Bencher) {
    let messages = [b"\x82\xc0mask".as_slice(), &[7; 64]].concat().repeat(1_000);
    bencher.counter(BytesCount::of_slice(&messages)).bench(|| {
        black_box(internals::frames(black_box(&messages), usize::MAX));
    });
}

/// A full read of frames of this size, followed; of 2 bytes by a backend, larger ones by a client.
#[divan::bench(args = [2, 6, 100, 1_024])]
fn follow(bencher: Bencher, size: usize) {
    follow_chunk(bencher, frame(size).repeat(CHUNK / size));
}

/// A full read of a client's messages of all lengths up to 120 bytes, in no order.
#[divan::bench]
fn follow_mixed(bencher: Bencher) {
    let mut chunk = Vec::new();
    let mut number = 1_usize;
    while chunk.len() < CHUNK - 200 {
        number = number * 75 % 65_537;
        chunk.extend(frame(6 + number % 121));
    }
    follow_chunk(bencher, chunk);
}

/// A read of one message, followed: what comes most often.
#[divan::bench(args = [6, 100, 1_024])]
fn follow_one(bencher: Bencher, size: usize) {
    follow_chunk(bencher, frame(size));
}

/// Bytes of a full read.
const CHUNK: usize = 64 * 1024;

/// Returns a binary frame of this size, header included: masked, if there is room for the key.
fn frame(size: usize) -> Vec<u8> {
    let mut frame = match size {
        0..6 => vec![0x82, size as u8 - 2],
        6..132 => vec![0x82, 0x80 | (size as u8 - 6)],
        _ => [&[0x82, 0xfe][..], &(size as u16 - 8).to_be_bytes()].concat(),
    };
    frame.resize(size, 7);
    frame
}

fn follow_chunk(bencher: Bencher, chunk: Vec<u8>) {
    let mut once = internals::Following::default();
    once.follow(&chunk);
    let (frames, ..) = once.counts();
    bencher.counter(ItemsCount::new(frames)).with_inputs(internals::Following::default).bench_refs(
        |direction| {
            direction.follow(black_box(&chunk));
        },
    );
}

/// The choice of a backend, with its lease.
#[divan::bench(args = [1, 10, 1_000], consts = [false, true])]
fn round_robin<const WEIGHTED: bool>(bencher: Bencher, backends: u32) {
    choose(bencher, backends, Balance::RoundRobin, WEIGHTED);
}

#[divan::bench(args = [1, 10, 1_000], consts = [false, true])]
fn least_tunnels<const WEIGHTED: bool>(bencher: Bencher, backends: u32) {
    choose(bencher, backends, Balance::LeastTunnels, WEIGHTED);
}

#[divan::bench(args = [1, 10, 1_000], consts = [false, true])]
fn hash<const WEIGHTED: bool>(bencher: Bencher, backends: u32) {
    choose(bencher, backends, Balance::Hash, WEIGHTED);
}

fn choose(bencher: Bencher, backends: u32, balance: Balance, is_weighted: bool) {
    let (pool, now) = (internals::Choosing::new(backends, balance, is_weighted), Instant::now());
    bencher.bench(|| black_box(pool.choose(now, black_box(b"room 7"))));
}
