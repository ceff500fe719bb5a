//! Edge-triggered readiness: the event loop is told of each change once, and never
//! reminded.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Barrier, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use ws_proxy::Workers;

use crate::support::{
    Backend, PATIENCE, Peer, Program, Proxy, has_been_read, in_kernel, noise,
    raise_descriptor_limit, section, switching, table, upgrade, value, wait_until,
};

/// Most bytes that the proxy reads at once, and that it may hold of a direction in memory.
const SCRATCH: usize = 64 * 1024;
/// Most bytes that it may hold of a direction in a pipe.
const PIPE: usize = 256 * 1024;
/// Number of pipes of a worker.
const PIPES: usize = 64;
/// Number of them that it keeps when they are empty.
const SPARE: usize = 8;
/// Lengths at which something changes.
const SIZES: [usize; 7] = [0, 1, SCRATCH - 1, SCRATCH, SCRATCH + 1, 2 * SCRATCH, 1 << 20];
/// Time after which a connection that takes no byte is blocked. There is no event for it.
const QUIET: Duration = Duration::from_millis(250);

/// More than a tight connection takes at first and the proxy may hold.
const SOME: usize = 768 * 1024;
/// More than the kernel lets a connection grow to here.
const PLENTY: usize = 64 << 20;

/// The header of a binary frame that is longer than any test: what follows it is payload, whatever
/// it looks like. Noise without it could be taken for a Close.
const HEADER: [u8; 10] = frame_header(1 << 62);
/// Place of a second one in the noise.
const OTHER_START: usize = 1_000;

/// Bytes that [`Endless`] repeats; an odd number of bytes, so that no buffer's size divides it.
static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut noise = noise(3, (1 << 20) + 7_001);
    noise[..HEADER.len()].copy_from_slice(&HEADER);
    noise[OTHER_START..][..HEADER.len()].copy_from_slice(&HEADER);
    noise
});

// Data that is there before the tunnel is.

#[test]
fn what_was_sent_before_there_was_a_tunnel_comes_first_and_whole() {
    let backend = Backend::start();
    let proxy = on_one_worker(&backend);
    for (up, down, have_ended) in
        pairs_of_sizes().flat_map(|(up, down)| [(up, down, false), (up, down, true)])
    {
        let what = format!("{up} bytes up and {down} down, ended: {have_ended}");
        let (for_backend, for_client) = (&NOISE[..up], &NOISE[OTHER_START..][..down]);
        let mut client = Peer::connect(proxy.address);
        thread::scope(|scope| {
            let request = [upgrade("").as_bytes(), for_backend].concat();
            let sending = send_all(scope, &client, request, false);
            let mut server = backend.accept();
            server.read_head();
            let answer = [switching("").as_bytes(), for_client].concat();
            send_all(scope, &server, answer, have_ended);

            let head = client.read_head();
            assert!(head.starts_with("HTTP/1.1 101 "), "{what}: {head}");
            if have_ended {
                // Before its 101 a client that ends would be gone.
                sending.join().unwrap();
                client.end_sending();
            }
            let mut client = client.clone_handle();
            let reading = scope.spawn(move || receive(&mut client, for_client.len(), have_ended));
            assert_same(&receive(&mut server, up, have_ended), for_backend, &what);
            assert_same(&reading.join().unwrap(), for_client, &what);
        });
    }
}

#[test]
fn what_was_sent_before_there_was_a_tunnel_does_not_hold_up_what_follows() {
    let backend = Backend::start();
    let proxy = on_one_worker(&backend);
    for size in SIZES {
        let mut client = Peer::connect(proxy.address);
        thread::scope(|scope| {
            send_all(scope, &client, [upgrade("").as_bytes(), &NOISE[..size]].concat(), false);
            let mut server = backend.accept();
            server.read_head();
            server.send(switching("Glued: yes\r\n") + "glued");
            client.read_head();
            client.expect("glued");
            // Nobody has sent anything since.
            assert_same(&server.read_exactly(size), &NOISE[..size], "early");
            for _ in 0..10 {
                client.send("up");
                server.expect("up");
                server.send("down");
                client.expect("down");
            }
        });
    }
}

// Wake-ups between "would block" and sleep.

#[test]
fn no_wake_up_is_lost_between_two_messages() {
    const ROUNDS: usize = 2_000;
    let backend = Backend::start();
    let proxy = on_one_worker(&backend);
    thread::scope(|scope| {
        for tunnel in 0..2 {
            let (client, server) = Peer::tunnel(proxy.address, &backend);
            for (way, from, to) in [(0, &client, &server), (1, &server, &client)] {
                let (mut from, mut to) = (from.clone_handle(), to.clone_handle());
                let (arrived, confirmed) = channel();
                let message = move |round: usize| match round {
                    0 => &HEADER[..],
                    _ => &NOISE[(2 * tunnel + way) * 100_000 + round * 41..][..1 + round * 7 % 40],
                };
                scope.spawn(move || {
                    let mut random = Random(1 + 2 * tunnel as u64 + way as u64);
                    for round in 0..ROUNDS {
                        let mut rest = message(round);
                        while !rest.is_empty() {
                            let (piece, left) = rest.split_at(random.upto(rest.len().min(16)));
                            from.send(piece);
                            rest = left;
                        }
                        confirmed
                            .recv_timeout(PATIENCE)
                            .unwrap_or_else(|_| panic!("round {round} hangs"));
                    }
                });
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        to.expect(message(round));
                        arrived.send(()).unwrap();
                    }
                });
            }
        }
    });
}

#[test]
fn no_wake_up_is_lost_between_two_workers() {
    let backend = Backend::start();
    let proxy = Proxy::start(Proxy::to(&[&backend]).workers(&Workers::start(4).unwrap()));
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..8 * 40 {
                let (mut server, _) = backend.accept_tunnel();
                server.send("hello");
            }
        });
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..40 {
                    let mut client = Peer::sending(proxy.address, upgrade(""));
                    client.read_head();
                    client.expect("hello");
                    client.expect_eof();
                }
            });
        }
    });
}

// Partial writes.

#[test]
fn partial_writes_of_every_size_lose_nothing() {
    const BLOCK: usize = 400 * 1024;
    /// So often so little is taken at a time; the rest goes faster.
    const SMALL_TAKES: usize = 100_000;
    // Blocks that are repeated: the one is worth a pipe, the others go through memory.
    let in_one_frame = &NOISE[..BLOCK];
    let in_many_frames = NOISE[..BLOCK].chunks(16 * 1024);
    let in_many_frames = &in_many_frames
        .flat_map(|payload| [&frame_header(payload.len() as u64), payload].concat())
        .collect::<Vec<_>>()[..];
    let backend = Backend::tight();
    let proxy = on_one_worker(&backend);
    let takes = table([1, 2, 3, 5, 7, 11, 13, 101, 536, 1_009, 4_096, 10_007]);
    let is_enough = AtomicBool::new(false);
    thread::scope(|scope| {
        let enough = SetOnDrop(&is_enough);
        let tunnels = takes.into_iter().enumerate().map(|(number, take)| {
            let (client, server) = Peer::connect_tight(proxy.address).into_tunnel(&backend);
            let connections = Connections::of(&client, &server);
            let (source, sink) = Way::BOTH[number % 2].ends(client, server);
            for (from, block) in [(&source, in_one_frame), (&sink, in_many_frames)] {
                let (mut from, is_enough) = (from.clone_handle(), &is_enough);
                scope.spawn(move || {
                    while !is_enough.load(Ordering::Relaxed) {
                        block.chunks(take * 997).for_each(|piece| from.send(piece));
                    }
                    from.end_sending();
                });
            }
            (take, connections, source, sink)
        });
        let tunnels: Vec<_> = tunnels.collect();
        // From now on each write of the proxy can only be as long as there has been made room.
        tunnels.iter().for_each(|(_, connections, ..)| _ = connections.still(QUIET / 4));
        drop(enough);
        for (take, _, source, sink) in tunnels {
            for (mut to, block) in [(sink, in_one_frame), (source, in_many_frames)] {
                scope.spawn(move || {
                    let (mut buffer, mut rest) = (vec![0; take * 997], &block[..0]);
                    for number in 0.. {
                        let most = if number < SMALL_TAKES { take } else { take * 997 };
                        let count = to.stream.read(&mut buffer[..most]).expect("the bytes come");
                        if count == 0 {
                            break;
                        }
                        let mut got = &buffer[..count];
                        while !got.is_empty() {
                            rest = if rest.is_empty() { block } else { rest };
                            let same = got.len().min(rest.len());
                            assert!(
                                got[..same] == rest[..same],
                                "damaged, taking {take} bytes at a time"
                            );
                            (got, rest) = (&got[same..], &rest[same..]);
                        }
                    }
                    assert!(
                        rest.is_empty(),
                        "{} bytes are left, taking {take} at a time",
                        rest.len()
                    );
                });
            }
        }
    });
}

// The end, together with data.

#[test]
fn an_end_right_after_data_of_any_size_arrives_with_it() {
    let backend = Backend::start();
    let proxy = on_one_worker(&backend);
    for (up, down) in pairs_of_sizes() {
        let what = format!("{up} bytes up and {down} down at once");
        let (client, server) = Peer::tunnel(proxy.address, &backend);
        let together = Barrier::new(2);
        thread::scope(|scope| {
            for (from, to, size) in [(&client, &server, up), (&server, &client, down)] {
                let (mut from, mut to) = (from.clone_handle(), to.clone_handle());
                let (together, what) = (&together, &what);
                let bytes = &NOISE[..size];
                scope.spawn(move || {
                    together.wait();
                    from.send(bytes);
                    from.end_sending();
                });
                scope.spawn(move || assert_same(&to.read_to_end(), bytes, what));
            }
        });
    }
}

#[test]
fn an_end_right_after_data_of_any_size_leaves_the_way_back_open() {
    let backend = Backend::start();
    let proxy = on_one_worker(&backend);
    for size in SIZES {
        let bytes = &NOISE[..size];
        let (client, server) = Peer::tunnel(proxy.address, &backend);
        let (other_client, other_server) = Peer::tunnel(proxy.address, &backend);
        for (mut first, mut second) in [(client, server), (other_server, other_client)] {
            thread::scope(|scope| {
                send_all(scope, &first, bytes.to_vec(), true);
                assert_same(&second.read_to_end(), bytes, "the way there");
                // More than one turn of it, and by now nothing else wakes the tunnel.
                send_all(scope, &second, bytes.to_vec(), false).join().unwrap();
                assert_same(&first.read_exactly(bytes.len()), bytes, "the way back");
                second.send("the end");
                second.end_sending();
                assert_same(&first.read_to_end(), b"the end", "the last of it");
            });
        }
    }
}

#[test]
fn half_close_in_every_order_under_load_loses_nothing() {
    const LESS: usize = 300_007;
    const MORE: usize = 3_000_017;
    let backend = Backend::start();
    let proxy = on_one_worker(&backend);
    thread::scope(|scope| {
        let rows = table([(LESS, MORE), (MORE, LESS), (MORE, MORE), (0, MORE), (MORE, 0)]);
        for (up, down) in rows {
            for _ in 0..2 {
                let (client, server) = Peer::tunnel(proxy.address, &backend);
                for (from, to, size) in [(&client, &server, up), (&server, &client, down)] {
                    let (mut from, mut to) = (from.clone_handle(), to.clone_handle());
                    scope.spawn(move || {
                        let mut sent = Endless::from(size);
                        while sent.count < size {
                            let piece = sent.ahead(100_003.min(size - sent.count));
                            from.send(piece);
                            sent.pass(piece.len());
                        }
                        from.end_sending();
                    });
                    scope.spawn(move || {
                        let mut came = Endless::from(size);
                        came.read_to_end(&mut to);
                        assert_eq!(came.count, size, "of {up} up and {down} down");
                    });
                }
            }
        }
    });
}

#[test]
fn an_end_and_data_pass_while_the_other_direction_is_blocked() {
    let backend = Backend::tight();
    let proxy = on_one_worker(&backend);
    for blocked in Way::BOTH {
        let (client, server) = Peer::connect_tight(proxy.address).into_tunnel(&backend);
        let connections = Connections::of(&client, &server);
        let (source, mut sink) = blocked.ends(client, server);
        let mut flood = Flood::new(source, 0, PLENTY);
        flood.flow();
        connections.still(QUIET / 4);
        flood.flow();
        for _ in 0..100 {
            sink.send("still there?");
            flood.peer.expect("still there?");
        }
        sink.end_sending();
        flood.peer.expect_eof();
        // The blocked direction is as it was.
        flood.peer.end_sending();
        flood.expect_rest(&mut sink);
    }
}

// Resets.

#[test]
fn a_reset_by_the_source_of_held_bytes_is_noticed() {
    reset_while_blocked(Way::source);
}

#[test]
fn a_reset_by_the_sink_of_held_bytes_is_noticed() {
    reset_while_blocked(Way::sink);
}

/// Blocks tunnels each way, through memory and through a pipe, with and without the source's end
/// after the bytes; resets one side, and waits until the proxy and the other side know.
fn reset_while_blocked(who: fn(Way) -> &'static str) {
    thread::scope(|scope| {
        for (blocked, through_pipe, has_ended) in Way::BOTH.into_iter().flat_map(|way| {
            [(way, false, false), (way, false, true), (way, true, false), (way, true, true)]
        }) {
            scope.spawn(move || {
                let what =
                    format!("{blocked:?}, pipe: {through_pipe}, source has ended: {has_ended}");
                let backend = blocked.backend();
                let (mut program, address, idle) = program_that_idles(&backend);

                let (client, server) = blocked.tunnel(address, &backend);
                let connections = Connections::of(&client, &server);
                let (mut source, sink) = blocked.ends(client, server);
                if through_pipe {
                    // Only a pipe can hold this much.
                    flood_until(
                        &mut [(Flood::new(source.clone_handle(), 0, PLENTY), sink.clone_handle())],
                        |floods| connections.held(floods[0].0.on_its_way()) > SCRATCH,
                    );
                    assert_eq!(program.descriptors(), idle + 4, "{what}");
                } else {
                    block_gently(&mut source, &connections);
                    assert_eq!(program.descriptors(), idle + 2, "{what}");
                }
                if has_ended {
                    source.end_sending();
                }

                let (resets, mut stays) = match who(blocked) == blocked.source() {
                    true => (source, sink),
                    false => (sink, source),
                };
                resets.reset();
                let end = program.wait_for("event=tunnel_end");
                assert_eq!(value(&end, "reason"), format!("{}_reset", who(blocked)), "{what}");
                // The borrowed pipe is gone too.
                program.wait_for_descriptors(idle);
                stays.expect_end();
            });
        }
    });
}

#[test]
fn a_reset_after_an_end_is_noticed_where_nothing_is_read_any_more() {
    let backend = Backend::start();
    let (mut program, address, _) = program_that_idles(&backend);
    for way in Way::BOTH {
        let (client, server) = Peer::tunnel(address, &backend);
        let (mut ends, mut stays) = way.ends(client, server);
        ends.end_sending();
        stays.expect_eof();
        ends.reset();
        stays.expect_end();
        let end = program.wait_for("event=tunnel_end");
        assert_eq!(value(&end, "reason"), format!("{}_reset", way.source()));
    }
}

// Many tunnels.

#[test]
fn two_thousand_tunnels_on_one_worker_answer_and_leave_no_descriptor() {
    const TUNNELS: usize = 2_000;
    raise_descriptor_limit();
    let backend = Backend::start();
    let (program, address, idle) = program_that_idles(&backend);
    let mut tunnels: Vec<_> = (0..TUNNELS).map(|_| Peer::tunnel(address, &backend)).collect();
    assert_eq!(program.descriptors(), idle + 2 * TUNNELS);
    let mut order: Vec<_> = (0..TUNNELS).collect();
    let mut random = Random(1);
    let message = |number: usize| [&[0x82, 8], &number.to_be_bytes()[..]].concat();

    // One after the other.
    random.shuffle(&mut order);
    for &number in &order {
        let (client, server) = &mut tunnels[number];
        client.send(message(number));
        server.expect(message(number));
        server.send(message(!number));
        client.expect(message(!number));
    }
    // All at once: more events than one wait takes.
    random.shuffle(&mut order);
    order.iter().for_each(|&number| tunnels[number].0.send(message(number)));
    random.shuffle(&mut order);
    for &number in &order {
        tunnels[number].1.expect(message(number));
        tunnels[number].1.send(message(!number));
    }
    random.shuffle(&mut order);
    order.iter().for_each(|&number| tunnels[number].0.expect(message(!number)));

    // Each manner of ending.
    random.shuffle(&mut order);
    let mut tunnels: Vec<_> = tunnels.into_iter().map(Some).collect();
    for number in order {
        let (mut client, mut server) = tunnels[number].take().unwrap();
        match number % 4 {
            0 => {
                client.end_sending();
                server.end_sending();
            }
            1 => client.reset(),
            2 => server.reset(),
            _ => drop((server, client)),
        }
    }
    program.wait_for_descriptors(idle);
}

#[test]
fn more_blocked_bulk_tunnels_than_pipes_lose_nothing() {
    let backend = Backend::tight();
    let (program, address, idle) = program_that_idles(&backend);
    // The pipes of tunnels that break are not missing afterwards.
    for (flood, sink) in block_more_than_pipes(&program, address, &backend, idle) {
        flood.peer.reset();
        drop(sink);
    }
    program.wait_for_descriptors(idle + 2 * SPARE);
    // Those that find no pipe go on like those that do.
    let floods = block_more_than_pipes(&program, address, &backend, idle);
    thread::scope(|scope| {
        for (mut flood, mut sink) in floods {
            scope.spawn(move || {
                flood.peer.end_sending();
                flood.expect_rest(&mut sink);
            });
        }
    });
    program.wait_for_descriptors(idle + 2 * SPARE);
}

#[test]
fn bulk_that_finds_no_pipe_costs_little_more() {
    let backend = Backend::tight();
    let (program, address, idle) = program_that_idles(&backend);
    let with_pipe = ticks_of_bulk(&program, address, &backend);
    let _blocked = block_more_than_pipes(&program, address, &backend, idle);
    let without = ticks_of_bulk(&program, address, &backend);
    assert!(without <= 10 * with_pipe.max(5), "{without} ticks, {with_pipe} through a pipe");
}

/// CPU time of the program for a bulk transfer, in ticks.
fn ticks_of_bulk(program: &Program, address: SocketAddr, backend: &Backend) -> u64 {
    const TOTAL: usize = 32 << 20;
    let (client, mut server) = Peer::tunnel(address, backend);
    let before = program.cpu_ticks();
    thread::scope(|scope| {
        let mut source = client.clone_handle();
        scope.spawn(move || {
            let mut sent = Endless::from(0);
            while sent.count < TOTAL {
                let piece = sent.ahead(TOTAL - sent.count);
                source.send(piece);
                sent.pass(piece.len());
            }
        });
        Endless::from(0).read(&mut server, TOTAL);
    });
    program.cpu_ticks() - before
}

/// Tunnels that are blocked, more than there are pipes, of which all are in use.
fn block_more_than_pipes(
    program: &Program,
    address: SocketAddr,
    backend: &Backend,
    idle: usize,
) -> Vec<(Flood, Peer)> {
    const TUNNELS: usize = 100;
    let tunnels = (0..TUNNELS).map(|number| {
        let (client, server) = Peer::connect_tight(address).into_tunnel(backend);
        let (source, sink) = Way::BOTH[number % 2].ends(client, server);
        (Flood::new(source, number, SOME), sink)
    });
    let mut floods: Vec<_> = tunnels.collect();
    let most = idle + 2 * TUNNELS + 2 * PIPES;
    flood_until(&mut floods, |_| {
        let open = program.descriptors();
        assert!(open <= most, "{open} descriptors, of at most {most}");
        open == most
    });
    floods
}

// Fairness.

#[test]
fn a_tunnel_that_whispers_is_heard_beside_tunnels_that_flood() {
    const ROUNDS: usize = 50;
    /// Bytes that the floods may carry while a whisper and its answer are on their way, in most
    /// rounds: far more than a few turns of each. Bytes, since a time depends on the machine.
    const BOUND: usize = 64 << 20;
    let backend = Backend::start();
    let proxy = on_one_worker(&backend);
    let is_over = AtomicBool::new(false);
    let carried = AtomicUsize::new(0);
    let (mut client, mut server) = Peer::tunnel(proxy.address, &backend);
    thread::scope(|scope| {
        let (in_flow, flowing) = channel();
        // Whatever comes of the whispers, the floods end.
        let over = SetOnDrop(&is_over);
        for number in 0..3 {
            let (client, server) = Peer::tunnel(proxy.address, &backend);
            for (from, to) in [(&client, &server), (&server, &client)] {
                let (mut from, mut to) = (from.clone_handle(), to.clone_handle());
                let (in_flow, is_over, carried) = (in_flow.clone(), &is_over, &carried);
                let mut sent = Endless::from(number);
                let mut came = sent;
                scope.spawn(move || {
                    while !is_over.load(Ordering::Relaxed) {
                        let count = from.stream.write(sent.ahead(PIPE)).expect("the flood goes on");
                        sent.pass(count);
                        carried.fetch_add(count, Ordering::Relaxed);
                    }
                    from.end_sending();
                });
                scope.spawn(move || {
                    came.read(&mut to, 1 << 20);
                    in_flow.send(()).unwrap();
                    came.read_to_end(&mut to);
                });
            }
        }
        for _ in 0..6 {
            flowing.recv_timeout(PATIENCE).expect("all floods flow");
        }
        let mut meanwhile = [0; ROUNDS];
        for bytes in &mut meanwhile {
            let before = carried.load(Ordering::Relaxed);
            client.send("psst");
            server.expect("psst");
            server.send("what?");
            client.expect("what?");
            *bytes = carried.load(Ordering::Relaxed) - before;
        }
        drop(over);
        meanwhile.sort();
        assert!(meanwhile[ROUNDS / 2] < BOUND, "{meanwhile:?}");
    });
}

// Both manners of carrying.

#[test]
fn spliced_and_copied_frames_mixed_keep_their_order() {
    const FRAMES: usize = 300;
    let backend = Backend::start();
    let proxy = on_one_worker(&backend);
    thread::scope(|scope| {
        for tunnel in 0..2 {
            let (client, server) = Peer::tunnel(proxy.address, &backend);
            for (way, from, to) in [(1, &client, &server), (2, &server, &client)] {
                let (mut from, mut to) = (from.clone_handle(), to.clone_handle());
                let seed = 10 * tunnel + way;
                // Both know the frames: as many short as long ones, each somewhere in the noise.
                let frames = move || {
                    let mut random = Random(seed);
                    std::iter::repeat_with(move || {
                        let most = 1 << random.upto(20);
                        let length = random.upto(most);
                        let payload = &NOISE[random.upto(7_000)..][..length];
                        (frame_header(length as u64), payload, random.upto(3) == 1)
                    })
                    .take(FRAMES)
                };
                let (arrived, confirmed) = channel();
                scope.spawn(move || {
                    for (header, payload, pause_follows) in frames() {
                        from.send(header);
                        from.send(payload);
                        if pause_follows {
                            confirmed.recv_timeout(PATIENCE).expect("the frame arrives");
                        }
                    }
                    from.end_sending();
                });
                scope.spawn(move || {
                    for (number, (header, payload, pause_follows)) in frames().enumerate() {
                        to.expect(header);
                        assert_same(
                            &to.read_exactly(payload.len()),
                            payload,
                            &format!("frame {number}"),
                        );
                        if pause_follows {
                            arrived.send(()).unwrap();
                        }
                    }
                    to.expect_eof();
                });
            }
        }
    });
}

// Memory.

#[test]
fn what_is_held_of_a_blocked_direction_is_bounded() {
    for blocked in Way::BOTH {
        let backend = blocked.backend();
        let proxy = on_one_worker(&backend);
        for (in_bulk, bound) in table([(false, SCRATCH), (true, PIPE)]) {
            let (client, server) = blocked.tunnel(proxy.address, &backend);
            let connections = Connections::of(&client, &server);
            let (mut source, sink) = blocked.ends(client, server);
            let held = if in_bulk {
                let mut held = 0;
                flood_until(&mut [(Flood::new(source, 0, PLENTY), sink)], |floods| {
                    held = connections.held(floods[0].0.on_its_way());
                    held > SCRATCH
                });
                held
            } else {
                let sent = block_gently(&mut source, &connections);
                let held = connections.held(sent);
                drop(sink);
                held
            };
            assert!(
                0 < held && held <= bound,
                "{held} bytes are held, {blocked:?}, in bulk: {in_bulk}"
            );
        }
    }
}

// Urgent data.

#[test]
fn bytes_after_urgent_data_are_not_forgotten() {
    let backend = Backend::tight();
    let proxy = on_one_worker(&backend);
    for way in Way::BOTH {
        let (client, server) = Peer::connect_tight(proxy.address).into_tunnel(&backend);
        let connections = Connections::of(&client, &server);
        let (mut source, mut sink) = way.ends(client, server);
        // While the direction is blocked, all of it comes together.
        let held = block_gently(&mut source, &connections);
        source.send("before");
        send(&source.stream, b"!", SendFlags::OOB).unwrap();
        source.send("follow");
        sink.read_exactly(held);
        sink.expect("before");
        // The urgent byte itself may come or not.
        let mut got = sink.read_exactly(6);
        if got[0] == b'!' {
            got.remove(0);
            got.extend(sink.read_exactly(1));
        }
        assert_eq!(got, b"follow");
    }
}

#[test]
fn bulk_goes_on_after_urgent_data_and_an_end_cuts_nothing_off() {
    for (way, is_end) in Way::BOTH.into_iter().flat_map(|way| [(way, true), (way, false)]) {
        let backend = way.backend();
        let proxy = on_one_worker(&backend);
        let (client, server) = way.tunnel(proxy.address, &backend);
        let connections = Connections::of(&client, &server);
        let (source, sink) = way.ends(client, server);
        let mut floods = [(Flood::new(source, 0, PLENTY), sink)];
        flood_until(&mut floods, |floods| connections.held(floods[0].0.on_its_way()) > SCRATCH);
        let [(mut flood, mut sink)] = floods;
        let mut source = flood.peer.clone_handle();
        thread::scope(|scope| {
            scope.spawn(move || {
                send(&source.stream, b"!", SendFlags::OOB).unwrap();
                source.send("follow");
                if is_end {
                    source.end_sending();
                }
            });
            flood.came.read(&mut sink, flood.on_its_way());
            // The urgent byte itself may come or not.
            let mut rest = sink.read_exactly(6);
            if rest[0] == b'!' {
                rest.remove(0);
                rest.extend(sink.read_exactly(1));
            }
            assert_eq!(rest, b"follow");
            if is_end {
                sink.expect_eof();
            }
        });
    }
}

// Shared helpers.

/// A proxy whose tunnels all live on one worker.
fn on_one_worker(backend: &Backend) -> Proxy {
    Proxy::start(Proxy::to(&[backend]).workers(&Workers::start(1).unwrap()))
}

/// The same as a process of its own, which has carried a tunnel, and how many descriptors it has
/// without one.
fn program_that_idles(backend: &Backend) -> (Program, SocketAddr, usize) {
    let mut program = Program::with_config(&format!("workers = 1\n{}", section(backend.address)));
    let address = program.address();
    drop(Peer::tunnel(address, backend));
    program.wait_for("event=tunnel_end");
    let idle = program.descriptors();
    (program, address, idle)
}

/// A direction of a tunnel.
#[derive(Clone, Copy, Debug)]
enum Way {
    Up,
    Down,
}

impl Way {
    const BOTH: [Self; 2] = [Self::Up, Self::Down];

    /// A backend for blocking this direction: as a sink it takes little.
    fn backend(self) -> Backend {
        match self {
            Self::Up => Backend::tight(),
            Self::Down => Backend::start(),
        }
    }

    /// A tunnel of which this direction is soon blocked. Its source is as usual: small segments
    /// fill a pipe with few bytes.
    fn tunnel(self, proxy: SocketAddr, backend: &Backend) -> (Peer, Peer) {
        match self {
            Self::Up => Peer::tunnel(proxy, backend),
            Self::Down => Peer::connect_tight(proxy).into_tunnel(backend),
        }
    }

    /// The sender and the receiver.
    fn ends(self, client: Peer, server: Peer) -> (Peer, Peer) {
        match self {
            Self::Up => (client, server),
            Self::Down => (server, client),
        }
    }

    /// Name of the sender in the log.
    fn source(self) -> &'static str {
        match self {
            Self::Up => "client",
            Self::Down => "backend",
        }
    }

    /// Name of the receiver in the log.
    fn sink(self) -> &'static str {
        match self {
            Self::Up => "backend",
            Self::Down => "client",
        }
    }
}

fn pairs_of_sizes() -> impl Iterator<Item = (usize, usize)> {
    SIZES.into_iter().flat_map(|up| SIZES.into_iter().map(move |down| (up, down)))
}

/// Sends from a thread of its own, since nobody may be reading yet.
fn send_all<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    peer: &Peer,
    bytes: Vec<u8>,
    and_end: bool,
) -> thread::ScopedJoinHandle<'scope, ()> {
    let mut peer = peer.clone_handle();
    scope.spawn(move || {
        peer.send(bytes);
        if and_end {
            peer.end_sending();
        }
    })
}

/// Reads what [`send_all`] sends.
fn receive(peer: &mut Peer, size: usize, and_end: bool) -> Vec<u8> {
    if and_end { peer.read_to_end() } else { peer.read_exactly(size) }
}

/// Compares what is too long to be shown.
#[track_caller]
fn assert_same(got: &[u8], expected: &[u8], what: &str) {
    let differs = got.iter().zip(expected).position(|(one, other)| one != other);
    assert_eq!((got.len(), differs), (expected.len(), None), "length and first difference: {what}");
}

/// The header of a final, binary frame without a key. Its form for long payloads serves for short
/// ones too.
const fn frame_header(length: u64) -> [u8; 10] {
    let [a, b, c, d, e, f, g, h] = length.to_be_bytes();
    [0x82, 127, a, b, c, d, e, f, g, h]
}

/// A stream of bytes without end, at some point of it: one frame, as far as that can be seen.
#[derive(Clone, Copy)]
struct Endless {
    at: usize,
    count: usize,
}

impl Endless {
    fn from(seed: usize) -> Self {
        Self { at: seed * 7_919 % NOISE.len(), count: 0 }
    }

    /// The next bytes; fewer than asked for, where the noise begins anew.
    fn ahead(&self, most: usize) -> &'static [u8] {
        let rest =
            HEADER.get(self.count..).filter(|rest| !rest.is_empty()).unwrap_or(&NOISE[self.at..]);
        &rest[..most.min(rest.len())]
    }

    fn pass(&mut self, count: usize) {
        let of_header = count.min(HEADER.len().saturating_sub(self.count));
        self.at = (self.at + count - of_header) % NOISE.len();
        self.count += count;
    }

    /// Asserts that these are the next bytes.
    #[track_caller]
    fn expect(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let expected = self.ahead(bytes.len());
            assert!(bytes.starts_with(expected), "damaged after byte {}", self.count);
            bytes = &bytes[expected.len()..];
            self.pass(expected.len());
        }
    }

    /// Reads the next `count` bytes.
    fn read(&mut self, peer: &mut Peer, count: usize) {
        let mut buffer = vec![0; count.min(PIPE)];
        let end = self.count + count;
        while self.count < end {
            let most = (end - self.count).min(buffer.len());
            match peer.stream.read(&mut buffer[..most]).expect("the bytes come") {
                0 => panic!("the end comes {} bytes early", end - self.count),
                count => self.expect(&buffer[..count]),
            }
        }
    }

    /// Reads the next bytes up to the end.
    fn read_to_end(&mut self, peer: &mut Peer) {
        let mut buffer = vec![0; PIPE];
        loop {
            match peer.stream.read(&mut buffer).expect("the bytes come") {
                0 => return,
                count => self.expect(&buffer[..count]),
            }
        }
    }
}

/// A peer that sends as much as it can.
struct Flood {
    peer: Peer,
    /// So much may be on its way.
    most: usize,
    sent: Endless,
    /// The part that the other side has read.
    came: Endless,
}

impl Flood {
    fn new(peer: Peer, seed: usize, most: usize) -> Self {
        Self { peer, most, sent: Endless::from(seed), came: Endless::from(seed) }
    }

    /// Sends what can be sent now.
    fn flow(&mut self) {
        while self.on_its_way() < self.most {
            let piece = self.sent.ahead(self.most - self.on_its_way());
            match send(&self.peer.stream, piece, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => self.sent.pass(count),
                Err(Errno::AGAIN) => return,
                Err(error) => panic!("{error} after {} bytes", self.sent.count),
            }
        }
    }

    fn on_its_way(&self) -> usize {
        self.sent.count - self.came.count
    }

    /// Reads the rest of what has been sent, and the end.
    fn expect_rest(&mut self, sink: &mut Peer) {
        self.came.read_to_end(sink);
        assert_eq!(self.came.count, self.sent.count);
    }
}

/// Has the floods blocked so that `holds`; if it does not soon, the sinks take some, and the floods
/// go on.
fn flood_until(floods: &mut [(Flood, Peer)], mut holds: impl FnMut(&[(Flood, Peer)]) -> bool) {
    let end = Instant::now() + PATIENCE;
    for is_much in [false, true].into_iter().cycle() {
        let soon = Instant::now() + QUIET;
        let (mut it_holds, mut is_late) = (false, false);
        wait_until("the floods are blocked", || {
            floods.iter_mut().for_each(|(flood, _)| flood.flow());
            (it_holds, is_late) = (holds(floods), Instant::now() >= soon);
            it_holds || is_late
        });
        if it_holds {
            return;
        }
        assert!(Instant::now() < end, "the floods are blocked otherwise");
        for (flood, sink) in floods.iter_mut() {
            // Less than a pipe holds, so that it is not always the same that is left in it, or so
            // much that a flood begins anew.
            let some = if is_much { flood.on_its_way() / 2 } else { SCRATCH };
            flood.came.read(sink, some);
            // The kernel has given the sink's connection more room, as by what it remembers of
            // others.
            flood.most += SOME;
        }
    }
}

/// The two connections of a tunnel, as the kernel knows them.
struct Connections([(SocketAddr, SocketAddr); 2]);

impl Connections {
    fn of(client: &Peer, server: &Peer) -> Self {
        Self(
            [client, server]
                .map(|peer| (peer.stream.local_addr().unwrap(), peer.stream.peer_addr().unwrap())),
        )
    }

    /// Number of the bytes on their way that the proxy has, and not the kernel, when nothing moves
    /// any more.
    fn held(&self, on_its_way: usize) -> usize {
        // Bytes that have come and are not acknowledged yet count twice; the kernel puts that off
        // for up to 200 ms.
        on_its_way.saturating_sub(self.still(QUIET))
    }

    /// The same at this moment; fewer than it has while something is not acknowledged yet.
    fn held_now(&self, on_its_way: usize) -> usize {
        on_its_way.saturating_sub(self.queued())
    }

    fn queued(&self) -> usize {
        self.0.iter().map(|&(one, other)| in_kernel(one, other)).sum()
    }

    /// Waits until nothing has moved for this long; gives the number of bytes that the kernel has
    /// then.
    fn still(&self, time: Duration) -> usize {
        let mut known = (self.queued(), Instant::now());
        wait_until("nothing moves", || {
            let now = self.queued();
            if now != known.0 {
                known = (now, Instant::now());
            }
            known.1.elapsed() >= time
        });
        known.0
    }
}

/// Blocks the direction with pieces that are never together long enough for a pipe; gives how much
/// was sent.
fn block_gently(source: &mut Peer, connections: &Connections) -> usize {
    const PIECE: usize = 4 * 1024;
    let (from, to) = (source.stream.local_addr().unwrap(), source.stream.peer_addr().unwrap());
    let mut sent = Endless::from(0);
    loop {
        let piece = sent.ahead(PIECE);
        source.send(piece);
        sent.pass(piece.len());
        let end = Instant::now() + QUIET;
        let mut is_blocked = false;
        wait_until("the piece is read, or the direction is blocked", || {
            // A proxy that is merely slow holds nothing.
            is_blocked = Instant::now() >= end && connections.held_now(sent.count) > 0;
            is_blocked || has_been_read(from, to)
        });
        if is_blocked {
            return sent.count;
        }
    }
}

/// Numbers that are the same each time.
struct Random(u64);

impl Random {
    /// From 1 to `most`.
    fn upto(&mut self, most: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        1 + (self.0 >> 33) as usize % most
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.upto(last + 1) - 1);
        }
    }
}

/// Says that something is over, even when a test fails.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
