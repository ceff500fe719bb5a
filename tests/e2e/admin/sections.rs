//! Sections and backends, as the admin listener tells of them.

use super::Admin;
use crate::support::{Backend, Peer, section, upgrade};

#[test]
fn a_section_tells_its_address_its_state_and_its_numbers() {
    let mut admin = Admin::start("", "timeout_ms = 60000");
    let idle = admin.json("GET /sections")[0].clone();
    assert_eq!(idle["section"], admin.proxy.to_string());
    assert_eq!(idle["bind"], admin.proxy.to_string());
    assert_eq!(idle["backends"][0], admin.backend.address.to_string());
    assert_eq!((&idle["state"], &idle["tunnels"]), (&"accepting".into(), &0.into()));
    assert!(idle["max_connections"].is_null(), "{idle}");
    let (_client, _server) = Peer::tunnel(admin.proxy, &admin.backend);
    // Its count may come after the 101.
    while admin.json("GET /sections")[0]["tunnels"] != 1 {
        std::thread::yield_now();
    }
    assert_eq!(admin.json("GET /sections")[0]["connections"], 1);
    assert_eq!(admin.json("GET /backends")[0]["tunnels"], 1);
    assert_eq!(admin.ask("POST /drain", "").0, 200);
    admin.program.wait_for("event=draining");
    assert_eq!(admin.json("GET /sections")[0]["state"], "draining");
}

#[test]
fn a_backend_tells_its_state_and_its_failures() {
    let backend = Backend::refusing();
    let text = format!("[admin]\nbind = \"127.0.0.1:0\"\n{}", section(backend.address));
    let admin = Admin::start_with(backend, &text);
    let fresh = admin.json("GET /backends")[0].clone();
    assert_eq!(fresh["backend"], admin.backend.address.to_string());
    assert_eq!(fresh["section"], admin.proxy.to_string());
    assert_eq!(fresh["state"], "unknown");
    assert_eq!(fresh["connect_failures"]["refused"], 0);
    Peer::sending(admin.proxy, upgrade("")).read_refusal();
    while admin.json("GET /backends")[0]["connect_failures"]["refused"] != 1 {
        std::thread::yield_now();
    }
    // The only backend is never ejected, but nobody takes it for well after three failures.
    for _ in 1..3 {
        Peer::sending(admin.proxy, upgrade("")).read_refusal();
    }
    let failing = admin.json("GET /backends")[0].clone();
    assert_eq!((&failing["state"], &failing["ejections"]), (&"unhealthy".into(), &0.into()));
    assert_eq!(failing["reason"], "3 connect failures in a row");
}
