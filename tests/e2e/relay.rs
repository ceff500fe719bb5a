//! The relay: bytes in both directions, half-closes, resets, and backpressure.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt;

use crate::support::{
    Backend, PATIENCE, Peer, Proxy, assert_alive, noise, socket_of_peer, switching, upgrade,
};

/// Most that may be on its way to a side that does not read: the buffers of two pairs of sockets,
/// which Linux lets grow up to these limits, and what the proxy holds itself.
fn in_flight_max() -> usize {
    let most = |file: &str| -> usize {
        let limits = std::fs::read_to_string(format!("/proc/sys/net/ipv4/{file}")).unwrap();
        limits.split_whitespace().last().unwrap().parse().unwrap()
    };
    2 * (most("tcp_rmem") + most("tcp_wmem")) + (1 << 20)
}

/// A round of large transfers; a prime, so that no buffer's size divides it.
const BLOCK: usize = 1_000_003;

/// Runs a test on a tunnel both ways round: with the client as the first peer, and with the
/// backend.
fn both_ways(test: impl Fn(Peer, Peer)) {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    for first in ["client", "backend"] {
        println!("the first peer is the {first}");
        let (client, server) = Peer::tunnel(proxy.address, &backend);
        if first == "client" { test(client, server) } else { test(server, client) }
    }
}

/// Sends `len` bytes that [`receive`] knows.
fn pour(peer: &mut Peer, seed: u64, len: usize) {
    let block = noise(seed, BLOCK);
    for (round, start) in (0..len).step_by(BLOCK).enumerate() {
        let size = BLOCK.min(len - start);
        // Blocks differ by their number, so that none can stand for another.
        peer.send([&round.to_le_bytes()[..], &block[..size]].concat());
    }
}

/// Reads the bytes of [`pour`], and nothing else.
fn receive(peer: &mut Peer, seed: u64, len: usize) {
    let block = noise(seed, BLOCK);
    for (round, start) in (0..len).step_by(BLOCK).enumerate() {
        let size = BLOCK.min(len - start);
        let got = peer.read_exactly(8 + size);
        assert_eq!(got[..8], round.to_le_bytes());
        assert!(got[8..] == block[..size], "round {round} is damaged");
    }
}

/// Pours `len` bytes both ways at once.
fn exchange(one: &mut Peer, other: &mut Peer, len: usize) {
    let (mut from_one, mut from_other) = (one.clone_handle(), other.clone_handle());
    thread::scope(|scope| {
        scope.spawn(|| pour(&mut from_one, 1, len));
        scope.spawn(|| pour(&mut from_other, 2, len));
        scope.spawn(|| receive(one, 2, len));
        receive(other, 1, len);
    });
}

#[test]
fn leftovers_of_both_heads_come_first() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let early = noise(1, 5_000);
    let (mut client, mut server) =
        Peer::handshake(proxy.address, &backend, [upgrade("").as_bytes(), &early].concat());
    client.send("while the backend thinks, ");
    let glued = noise(2, 5_000);
    server.send([switching("").as_bytes(), &glued].concat());
    assert!(client.read_head().starts_with("HTTP/1.1 101 "));
    client.send("and after the 101");
    server.send("and later");

    server.expect([&early[..], b"while the backend thinks, and after the 101"].concat());
    client.expect([&glued[..], b"and later"].concat());
}

#[test]
fn nothing_is_added_between_the_leftovers_and_an_immediate_end() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let (mut client, mut server) =
        Peer::handshake(proxy.address, &backend, upgrade("") + "all that I say");
    server.send(switching("") + "all that I say too");
    server.end_sending();
    client.read_head();
    client.end_sending();
    assert_eq!(server.read_text_to_end(), "all that I say");
    assert_eq!(client.read_text_to_end(), "all that I say too");
}

#[test]
fn half_close_keeps_return_traffic() {
    both_ways(|mut one, mut other| {
        one.send("the last of one");
        one.end_sending();
        assert_eq!(other.read_text_to_end(), "the last of one");
        for round in 0..3 {
            other.send(format!("return {round}"));
            one.expect(format!("return {round}"));
        }
        other.end_sending();
        one.expect_eof();
    });
}

#[test]
fn an_eof_does_not_overtake_the_data_before_it() {
    both_ways(|mut one, mut other| {
        let len = 8 << 20;
        let mut sending = one.clone_handle();
        thread::scope(|scope| {
            scope.spawn(|| {
                pour(&mut sending, 1, len);
                sending.end_sending();
            });
            // The return traffic is larger than all buffers too, and begins before the end has come
            // through.
            scope.spawn(|| receive(&mut one, 2, len));
            pour(&mut other, 2, len);
            receive(&mut other, 1, len);
        });
        other.expect_eof();
        assert_eq!(one_way(&mut other, &mut one), "still open");
    });
}

/// One more message in the direction that is left.
fn one_way(from: &mut Peer, to: &mut Peer) -> String {
    from.send("still open");
    String::from_utf8(to.read_exactly(10)).unwrap()
}

#[test]
fn both_ends_at_once_lose_nothing() {
    both_ways(|mut one, mut other| {
        let (to_other, to_one) = (noise(1, 200_000), noise(2, 200_000));
        thread::scope(|scope| {
            for (peer, bytes) in [(one.clone_handle(), &to_other), (other.clone_handle(), &to_one)]
            {
                scope.spawn(move || {
                    let mut peer = peer;
                    peer.send(bytes);
                    peer.end_sending();
                });
            }
            scope.spawn(|| assert!(one.read_to_end() == to_one));
            assert!(other.read_to_end() == to_other);
        });
    });
}

/// Brings a tunnel into a state, resets one side, and waits until the other one notices.
fn reset_ends_the_tunnel(prepare: impl Fn(&mut Peer, &mut Peer)) {
    both_ways(|mut one, mut other| {
        prepare(&mut one, &mut other);
        one.reset();
        other.expect_end();
        // A side that had its EOF before the reset learns of it by writing.
        other.write_until_broken();
    });
}

#[test]
fn a_reset_ends_an_idle_tunnel() {
    reset_ends_the_tunnel(|_, _| {});
    reset_ends_the_tunnel(assert_alive);
}

#[test]
fn a_reset_ends_a_tunnel_in_full_flow() {
    both_ways(|mut one, mut other| {
        let (mut pouring, mut reading) = (other.clone_handle(), one.clone_handle());
        thread::scope(|scope| {
            scope.spawn(|| pouring.write_until_broken());
            scope.spawn(|| other.expect_end());
            let mut scratch = [0; 16 * 1024];
            for _ in 0..200 {
                one.send([7; 16 * 1024]);
                reading.stream.read_exact(&mut scratch).unwrap();
            }
            drop(reading);
            one.reset();
        });
    });
}

#[test]
fn a_reset_by_a_side_that_is_not_read_ends_the_tunnel() {
    reset_ends_the_tunnel(|one, _| {
        one.flood();
    });
}

#[test]
fn a_reset_by_a_side_that_does_not_read_ends_the_tunnel() {
    reset_ends_the_tunnel(|_, other| {
        other.flood();
    });
}

#[test]
fn a_reset_ends_a_tunnel_that_is_blocked_both_ways() {
    reset_ends_the_tunnel(|one, other| {
        one.flood();
        other.flood();
    });
}

#[test]
fn a_reset_after_the_own_half_was_finished_ends_the_tunnel() {
    reset_ends_the_tunnel(|one, other| {
        one.end_sending();
        other.expect_eof();
    });
}

#[test]
fn a_reset_after_the_other_half_was_finished_ends_the_tunnel() {
    reset_ends_the_tunnel(|one, other| {
        other.end_sending();
        one.expect_eof();
    });
}

#[test]
fn a_reset_after_an_end_that_could_not_be_written_yet_ends_the_tunnel() {
    reset_ends_the_tunnel(|one, _| {
        one.flood();
        one.end_sending();
    });
}

#[test]
fn a_reset_by_a_side_that_has_finished_and_does_not_read_ends_the_tunnel() {
    reset_ends_the_tunnel(|one, other| {
        one.end_sending();
        other.expect_eof();
        other.flood();
    });
}

#[test]
fn last_words_before_a_reset_arrive() {
    // A Close frame, 1001.
    let close = b"\x88\x02\x03\xe9";
    for _ in 0..20 {
        both_ways(|mut one, mut other| {
            one.send(close);
            one.reset();
            other.expect(close);
            other.expect_end();
        });
    }
}

#[test]
fn last_words_of_a_side_that_closes_with_unread_bytes_arrive() {
    for _ in 0..20 {
        both_ways(|mut one, mut other| {
            other.send("never read");
            let mut byte = [0];
            one.stream.peek(&mut byte).unwrap();
            one.send("last words");
            // The system makes a reset of this, as there are unread bytes.
            drop(one);
            other.expect("last words");
            other.expect_end();
        });
    }
}

#[test]
fn last_words_of_a_side_that_does_not_read_arrive() {
    both_ways(|mut one, mut other| {
        other.flood();
        one.send("last words");
        one.reset();
        other.expect("last words");
        other.expect_end();
    });
}

#[test]
fn a_side_that_does_not_read_stops_the_other_sides_reading() {
    both_ways(|mut one, mut other| {
        // Twice, as a proxy that does not stop would take more each time.
        let taken = one.flood() + one.flood();
        assert!(taken < in_flight_max(), "{taken} bytes were taken");
        // All that was taken arrives when the side reads again, and the tunnel is as good as
        // before.
        assert!(other.read_exactly(taken).iter().all(|&byte| byte == 7));
        assert_alive(&mut one, &mut other);
    });
}

#[test]
fn a_blocked_direction_blocks_no_other() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let (mut client, mut server) = Peer::tunnel(proxy.address, &backend);
    let mut neighbours = Peer::tunnel(proxy.address, &backend);

    client.flood();
    server.send("the other direction flows");
    client.expect("the other direction flows");
    exchange(&mut neighbours.0, &mut neighbours.1, 1 << 20);

    // The neighbour's blocked direction is the other one.
    neighbours.1.flood();
    neighbours.0.send("so does this one");
    neighbours.1.expect("so does this one");
    let (mut third, mut server_third) = Peer::tunnel(proxy.address, &backend);
    assert_alive(&mut third, &mut server_third);
}

#[test]
fn no_timeout_of_the_handshake_survives_into_the_tunnel() {
    let backend = Backend::start();
    let proxy = Proxy::to(&[&backend])
        .connect_timeout_ms(500)
        .read_timeout_ms(500)
        .response_timeout_ms(500);
    let proxy = Proxy::start(proxy);
    let mut whole = Peer::tunnel(proxy.address, &backend);
    let mut half = Peer::tunnel(proxy.address, &backend);
    half.0.end_sending();
    half.1.expect_eof();
    let mut blocked = Peer::tunnel(proxy.address, &backend);
    let taken = blocked.0.flood();

    // The time is the subject: twice each timeout.
    thread::sleep(Duration::from_millis(1_000));

    assert_alive(&mut whole.0, &mut whole.1);
    assert_alive(&mut whole.1, &mut whole.0);
    half.1.send("yes");
    half.0.expect("yes");
    blocked.1.read_exactly(taken);
    assert_alive(&mut blocked.0, &mut blocked.1);
}

#[test]
fn sixty_four_mebibytes_each_way_at_once_are_unchanged() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let (mut client, mut server) = Peer::tunnel(proxy.address, &backend);
    exchange(&mut client, &mut server, 64 << 20);
    client.end_sending();
    server.expect_eof();
    server.end_sending();
    client.expect_eof();
}

#[test]
fn a_mebibyte_each_way_through_small_buffers_is_unchanged() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let (mut client, mut server) = Peer::tunnel(proxy.address, &backend);
    for peer in [&client, &server] {
        // The kernel fills smaller windows than this one only a few times a second.
        sockopt::set_socket_recv_buffer_size(&peer.stream, 32 * 1024).unwrap();
        sockopt::set_socket_send_buffer_size(&peer.stream, 4 * 1024).unwrap();
    }
    exchange(&mut client, &mut server, 1 << 20);
}

#[test]
fn tiny_buffers_damage_nothing() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let (mut client, mut server) = Peer::tunnel(proxy.address, &backend);
    client.shrink_buffers();
    server.shrink_buffers();
    exchange(&mut client, &mut server, 32 * 1024);
}

#[test]
fn every_byte_value_passes() {
    both_ways(|mut one, mut other| {
        let all: Vec<u8> = (0..=255).collect();
        one.send(&all);
        other.expect(&all);
    });
}

#[test]
fn pieces_of_odd_sizes_keep_their_order() {
    let sizes = [1, 2, 3, 5, 7, 11, 127, 1_021, 4_093, 16_381, 16_384, 16_385, 65_537];
    both_ways(|mut one, mut other| {
        let bytes = noise(3, sizes.iter().sum::<usize>() * 5);
        let mut reading = other.clone_handle();
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut rest = &bytes[..];
                for &size in sizes.iter().cycle().take(sizes.len() * 5) {
                    let (piece, server) = rest.split_at(size);
                    one.send(piece);
                    rest = server;
                }
                one.end_sending();
            });
            let mut got = Vec::new();
            let mut scratch = vec![0; 70_000];
            for &size in sizes.iter().rev().cycle() {
                match reading.stream.read(&mut scratch[..size]).unwrap() {
                    0 => break,
                    count => got.extend_from_slice(&scratch[..count]),
                }
            }
            assert!(got == bytes);
        });
        assert_eq!(one_way(&mut other, &mut one), "still open");
    });
}

#[test]
fn a_small_message_does_not_wait_for_the_one_before_it() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let (client, server) = Peer::tunnel(proxy.address, &backend);
    for peer in [&client, &server] {
        // TCP_NODELAY, in place of a wait of up to 40 ms for an acknowledgement.
        assert!(sockopt::tcp_nodelay(socket_of_peer(&peer.stream)).unwrap());
    }
}

#[test]
fn both_connections_of_a_tunnel_are_kept_alive_by_tcp() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let (client, server) = Peer::tunnel(proxy.address, &backend);
    for (proxys, peers) in [
        (proxy.address, client.stream.local_addr().unwrap()),
        (server.stream.peer_addr().unwrap(), backend.address),
    ] {
        let seconds = keepalive_seconds(proxys, peers);
        assert!((1..=60).contains(&seconds), "the first probe is {seconds} s away");
    }
}

/// Time until TCP probes a silent connection, in seconds, from the kernel's table.
fn keepalive_seconds(local: SocketAddr, remote: SocketAddr) -> u64 {
    let pair = format!(" {} {} ", hex(local), hex(remote));
    let end = Instant::now() + PATIENCE;
    loop {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let line = table.lines().find(|line| line.contains(&pair)).expect("a connection");
        // sl local remote state queues timer:when ...; timer 2 is the one of keepalive, in
        // hundredths.
        let (timer, when) = line.split_whitespace().nth(5).unwrap().split_once(':').unwrap();
        if timer == "02" {
            return u64::from_str_radix(when, 16).unwrap().div_ceil(100);
        }
        // While an acknowledgement is awaited the table shows another timer.
        assert!(Instant::now() < end, "no keepalive: {line}");
    }
}

fn hex(address: SocketAddr) -> String {
    let SocketAddr::V4(address) = address else { panic!("{address}") };
    format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port())
}

#[test]
fn two_hundred_tunnels_do_not_mix() {
    let backend = Backend::start();
    let proxy = Proxy::before(&backend);
    let mut tunnels: Vec<_> = (0..200).map(|_| Peer::tunnel(proxy.address, &backend)).collect();
    for round in 0..5 {
        for (id, (client, server)) in tunnels.iter_mut().enumerate() {
            client.stream.write_all(format!("up {id:03} {round}").as_bytes()).unwrap();
            server.stream.write_all(format!("down {id:03} {round}").as_bytes()).unwrap();
        }
        for (id, (client, server)) in tunnels.iter_mut().enumerate().rev() {
            client.expect(format!("down {id:03} {round}"));
            server.expect(format!("up {id:03} {round}"));
        }
        // The end of some is none of the others' business: half of them by a close, half by a
        // reset.
        for (index, (client, mut server)) in tunnels.drain(..20).enumerate() {
            if index % 2 == 0 {
                drop(client)
            } else {
                client.reset()
            }
            server.expect_end();
        }
    }
}
