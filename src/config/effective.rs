//! A configuration as TOML text, with every default.

use serde::Serialize;

use super::{Config, SectionConfig};
use crate::proxy::Error;
use crate::settings::{OnRemoved, RawDrain, RawLog, RawSection};

/// The whole text. TOML has the keys of the top level before the tables.
#[derive(Serialize)]
struct Document {
    workers: usize,
    watch_config_ms: u64,
    on_removed: OnRemoved,
    drain: Option<RawDrain>,
    log: RawLog,
    #[cfg(feature = "admin")]
    admin: Option<crate::settings::RawAdmin>,
    ws_proxy: Vec<RawSection>,
}

impl Config {
    /// Returns the configuration in force as TOML that can be [parsed](Config::parse) again: each
    /// key with its value or its default. Without a default, and left out where they are not given,
    /// are `name`, `hash_on`, `learn_from`, `origins`, `socket_mode`, `health_path` and
    /// `health_check` of a section, `host` of a health check and the keys that its kind does not
    /// take, and the tables and keys of other programs.
    ///
    /// Secrets are not in it. The token of `[admin]` is in a file of its own, of which the text has
    /// the path. In `headers` of a health check the value of a field is `***` if its name tells of
    /// a secret: `Authorization`, `Cookie`, `X-Api-Key`, whatever has `auth`, `cookie`, `key`,
    /// `token`, `secret`, `pass` or `session` in it.
    ///
    /// # Errors
    ///
    /// The first setting that cannot be used. There is none if the configuration was parsed.
    pub fn to_toml(&self) -> Result<String, Error> {
        let document = self.document()?;
        // Nothing in it is beyond TOML; should that change, the reader is told.
        Ok(toml::to_string(&document).unwrap_or_else(|error| format!("# {error}\n")))
    }

    fn document(&self) -> Result<Document, Error> {
        let mut drain = None;
        let mut sections = Vec::new();
        for SectionConfig { bind, proxy } in &self.sections {
            let (section, drain_of_it) = proxy.effective(bind)?;
            sections.push(section);
            // All sections of a text have one drain.
            drain.get_or_insert(drain_of_it);
        }
        Ok(Document {
            workers: self.workers,
            watch_config_ms: u64::try_from(self.watch_interval.as_millis()).unwrap_or(u64::MAX),
            on_removed: self.on_removed,
            drain,
            log: RawLog { format: Some(self.log_format), level: Some(self.log_level.into()) },
            #[cfg(feature = "admin")]
            admin: self.admin.as_ref().map(|admin| admin.effective()),
            ws_proxy: sections,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::settings::RawHealthCheck;

    /// A section in which nothing has its default.
    const SECTION: &str = r#"
        [[ws_proxy]]
        name = "chat"
        bind = "unix:/run/ws-proxy.sock"
        backends = [
            "app:9000",
            { address = "[::1]:9001", weight = 2, max_tunnels = 3, backup = true },
        ]
        balance = "hash"
        hash_on = "cookie:io"
        learn_from = "json:sid"
        connect_timeout_ms = 1
        resolve = "watch"
        resolve_interval_ms = 2
        on_removed = "drain"
        queue_timeout_ms = 21
        queue_size = 22
        max_failures = 23
        eject_ms = 24
        max_ejected_percent = 25
        early_reset_ms = 26
        slow_start_ms = 27
        rebalance = true
        rebalance_code = 4028
        rebalance_per_second = 29
        read_timeout_ms = 3
        response_timeout_ms = 4
        host = "preserve"
        forwarded = "replace"
        origins = ["https://a.test", "none"]
        strict_handshake = true
        retry_on = ["503"]
        max_head_bytes = 500
        max_connections = 6
        socket_buffer_bytes = 7000
        socket_mode = "0660"
        ping_interval_ms = 8
        pong_timeout_ms = 9
        idle_timeout_ms = 10
        blocked_timeout_ms = 11
        max_lifetime_ms = 12
        lifetime_close_code = 4013
        max_message_bytes = 14
        max_frame_bytes = 15
        max_messages_per_second = 16
        max_frames_per_second = 17
        rate_action = "close"
        strict_frames = true
        backend_lost_code = 1012
        client_lost_code = 1013
        tunnel_start = true
        health_path = "/healthz"
        plain_http = "forward"
        max_body_bytes = 24
        keep_alive_timeout_ms = 25
        body_timeout_ms = 26
        [ws_proxy.health_check]
        kind = "http"
        path = "/up?deep=1"
        host = "app.test"
        headers = ["X-Probe: 1", "X-Probe: 2"]
        expect_status = "200-299,404"
        interval_ms = 30
        timeout_ms = 31
        healthy_threshold = 32
        unhealthy_threshold = 33
        on_unhealthy = "drain"
    "#;
    /// The rest of such a text.
    const REST: &str = r#"
        workers = 3
        watch_config_ms = 2000
        on_removed = "drain"
        [drain]
        delay_ms = 1
        spread_ms = 2
        timeout_ms = 3000
        close_code = 1012
        close_grace_ms = 4
        [log]
        format = "json"
        level = "debug"
        [admin]
        bind = "127.0.0.1:9600"
        hosts = ["a.test"]
    "#;

    fn table(text: &str) -> toml::Table {
        text.parse().unwrap()
    }

    fn effective(text: &str) -> String {
        Config::parse(text).unwrap().to_toml().unwrap()
    }

    #[test]
    fn what_is_given_comes_back() {
        let text = format!("{REST}{SECTION}");
        let section = &table(&text)["ws_proxy"][0];
        assert_eq!(section.as_table().unwrap().len(), RawSection::KEYS.len());
        let check = section["health_check"].as_table().unwrap();
        assert_eq!(check.len(), RawHealthCheck::KEYS.len());
        assert_eq!(table(&effective(&text)), table(&text));
    }

    #[test]
    fn what_is_not_given_has_its_default() {
        let text = "[[ws_proxy]]\nbind = \"127.0.0.1:0\"\nbackends = [\"ws://a\", \"b:1\"]\n";
        let printed = effective(&format!("{text}{text}"));
        assert_eq!(effective(&printed), printed);
        let table = table(&printed);
        let keys = |table: &toml::Table| table.keys().cloned().collect::<BTreeSet<_>>();
        let mut expected: BTreeSet<_> = RawSection::KEYS.iter().map(|&key| key.into()).collect();
        expected.retain(|key: &String| {
            ![
                "name",
                "hash_on",
                "learn_from",
                "origins",
                "socket_mode",
                "health_path",
                "health_check",
            ]
            .contains(&key.as_str())
        });
        let sections = table["ws_proxy"].as_array().unwrap();
        assert_eq!(sections.len(), 2);
        let section = sections[1].as_table().unwrap();
        assert_eq!(keys(section), expected);
        assert_eq!(keys(table["drain"].as_table().unwrap()).len(), RawDrain::KEYS.len());
        assert_eq!(keys(table["log"].as_table().unwrap()).len(), RawLog::KEYS.len());
        assert_eq!(section["backends"].to_string(), "[\"a\", \"b:1\"]");
        assert_eq!(section["response_timeout_ms"].as_integer(), Some(30_000));
        assert_eq!(section["max_connections"].as_integer(), Some(0));
        assert_eq!(table["drain"]["spread_ms"].as_integer(), Some(5_000));
        assert!(!table.contains_key("admin"));
    }

    #[test]
    fn a_health_check_has_the_keys_that_its_kind_takes() {
        let of = |lines: &str| {
            let text = format!(
                "[[ws_proxy]]\nbind = \"127.0.0.1:0\"\nbackends = [\"a:1\"]\n\
                 [ws_proxy.health_check]\n{lines}"
            );
            let printed = effective(&text);
            assert_eq!(effective(&printed), printed);
            table(&printed)["ws_proxy"][0]["health_check"].as_table().unwrap().clone()
        };
        let common = "interval_ms = 5000\ntimeout_ms = 2000\nhealthy_threshold = 2\n\
                      unhealthy_threshold = 3\non_unhealthy = \"keep\"\n";
        let request = "path = \"/\"\nheaders = []\n";
        let status = "expect_status = \"200-399\"\n";
        for (kind, keys) in [
            ("tcp", String::new()),
            ("websocket", request.to_owned()),
            ("http", format!("{request}{status}")),
        ] {
            let kind = format!("kind = \"{kind}\"\n");
            assert_eq!(of(&kind), table(&format!("{kind}{common}{keys}")));
        }
        assert_eq!(of(""), of("kind = \"tcp\""));
    }

    #[test]
    fn secrets_are_left_out() {
        let printed = effective(
            "[[ws_proxy]]\nbind = \"127.0.0.1:0\"\nbackends = [\"a:1\"]\n\
             [ws_proxy.health_check]\npath = \"/up\"\n\
             headers = { authorization = \"Bearer s3cret\", X-Probe = \"1\" }",
        );
        assert!(printed.contains("[\"X-Probe: 1\", \"authorization: ***\"]"), "{printed}");
        assert!(!printed.contains("s3cret"));
        assert_eq!(effective(&printed), printed);
    }

    #[test]
    fn the_values_of_a_rebalance_that_is_off_are_kept() {
        let text = "[[ws_proxy]]\nbind = \"127.0.0.1:0\"\nbackends = [\"a:1\"]\n";
        let of_section = |lines: &str, key: &str| {
            table(&effective(&format!("{text}{lines}")))["ws_proxy"][0][key].as_integer()
        };
        assert_eq!(of_section("", "rebalance_code"), Some(1012));
        assert_eq!(of_section("", "rebalance_per_second"), Some(10));
        assert_eq!(of_section("rebalance_code = 4000", "rebalance_code"), Some(4000));
        assert_eq!(of_section("rebalance_per_second = 3", "rebalance_per_second"), Some(3));
    }

    #[test]
    fn a_default_that_follows_another_key_is_what_it_comes_to() {
        let text = "[[ws_proxy]]\nbind = \"127.0.0.1:0\"\nbackends = [\"a:1\"]\n\
                    read_timeout_ms = 7\nmax_messages_per_second = 5\nping_interval_ms = 9\n\
                    resolve = \"watch\"\n\
                    [drain]\ntimeout_ms = 3000\n";
        let table = table(&effective(text));
        let of_section = |key: &str| table["ws_proxy"][0][key].as_integer();
        assert_eq!(of_section("response_timeout_ms"), Some(7));
        assert_eq!(of_section("max_frames_per_second"), Some(50));
        assert_eq!(of_section("pong_timeout_ms"), Some(9));
        assert_eq!(of_section("resolve_interval_ms"), Some(5000));
        assert_eq!(table["drain"]["spread_ms"].as_integer(), Some(1_000));
    }
}
