//! The settings of the backends, and of the choice among them.

use std::borrow::Cow;

use super::values::limit;
use super::{Invalid, PlainHttp, RawSection};
use crate::backend::balance::Balance;
use crate::backend::pool::BackendSettings;
use crate::handshake::hash_on::HashOn;
use crate::handshake::learn_from::LearnFrom;
use crate::handshake::retry::RetryOn;
use crate::net::address::Address;

/// Largest weight of a backend: a share of more is one of all.
const WEIGHT_MAX: i64 = 1_000;

/// A backend and its settings, for [`WsProxy::new`](crate::WsProxy::new): an address as text where
/// nothing else is asked for.
///
/// ```
/// use ws_proxy::{BackendConfig, WsProxy};
///
/// WsProxy::new([
///     BackendConfig::new("a:9000").weight(2).max_tunnels(500),
///     "b:9000".into(),
///     BackendConfig::new("spare:9000").backup(true),
/// ]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "a backend is one of a proxy"]
pub struct BackendConfig {
    pub(crate) address: String,
    weight: Option<i64>,
    max_tunnels: Option<i64>,
    backup: Option<bool>,
}

impl BackendConfig {
    /// Creates a backend at `host:port`, `ws://host:port` or `unix:/path`.
    pub fn new(address: impl Into<String>) -> Self {
        Self { address: address.into(), ..Self::default() }
    }

    /// Sets its share of the tunnels, relative to the weights of the others. Default: 1. Zero, and
    /// more than 1,000, is an error.
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = Some(weight.into());
        self
    }

    /// Limits its tunnels at the same time, handshakes included. At its limit it is passed over.
    /// Default: 0, no limit.
    pub fn max_tunnels(mut self, tunnels: u32) -> Self {
        self.max_tunnels = Some(tunnels.into());
        self
    }

    /// Uses it only while every other backend is at its limit or could not be connected to lately.
    /// Default: false.
    pub fn backup(mut self, is_backup: bool) -> Self {
        self.backup = Some(is_backup);
        self
    }

    /// Checks everything. An error names the place in the list.
    ///
    /// # Errors
    ///
    /// The first setting that cannot be used.
    pub(crate) fn check(&self, index: usize) -> Result<BackendSettings, Invalid> {
        const KEY: &str = "backends";
        let of = |key: &str, problem: String| {
            Invalid::element(KEY, index, format!("{:?}: {key}: {problem}", self.address))
        };
        let address =
            Address::backend(&self.address).map_err(|what| Invalid::element(KEY, index, what))?;
        let given = self.weight.unwrap_or(1);
        let weight = match u32::try_from(given) {
            Ok(weight) if (1..=WEIGHT_MAX).contains(&given) => weight,
            _ => return Err(of("weight", format!("{given} is out of range (1 to {WEIGHT_MAX})"))),
        };
        let tunnels =
            limit("max_tunnels", self.max_tunnels).map_err(|it| of(it.key, it.problem))?;
        // More than can be counted is as good as no limit.
        let max_tunnels = tunnels.and_then(|tunnels| u32::try_from(tunnels).ok());
        let is_backup = self.backup.unwrap_or_default();
        Ok(BackendSettings { address, watched: None, weight, max_tunnels, is_backup })
    }
}

impl RawSection {
    pub(super) fn retry_on(&self) -> Result<RetryOn, Invalid> {
        RetryOn::parse(self.retry_on.as_deref().unwrap_or_default())
            .map_err(|(index, problem)| Invalid::element("retry_on", index, problem))
    }

    pub(super) fn backends(&self) -> Result<Vec<BackendSettings>, Invalid> {
        const KEY: &str = "backends";
        let fault = match self.backends.as_deref() {
            None => "is missing",
            Some([]) => "is empty",
            Some(backends) => {
                let checked = backends.iter().enumerate().map(|(index, one)| one.check(index));
                return checked.collect();
            }
        };
        let mend = "name at least one, as in backends = [\"chat-backend:9000\"]";
        Err(Invalid::new(KEY, format!("{fault}: {mend}")))
    }

    pub(super) fn hash_on(&self) -> Result<Option<HashOn>, Invalid> {
        const KEY: &str = "hash_on";
        let is_hash = self.balance == Some(Balance::Hash);
        match self.hash_on.as_deref() {
            Some(part) if is_hash => {
                HashOn::parse(part).map(Some).map_err(|problem| Invalid::new(KEY, problem))
            }
            Some(_) => {
                let mend =
                    "has no effect without balance = \"hash\": set that as well, or leave it out";
                Err(Invalid::new(KEY, mend))
            }
            None if is_hash => {
                let mend = "is missing: name what balance = \"hash\" chooses by, as in \
                            hash_on = \"client_ip\"";
                Err(Invalid::new(KEY, mend))
            }
            None => Ok(None),
        }
    }

    /// Returns what tells of the values that requests have for `hash_on`: by default, where plain
    /// HTTP is forwarded, what goes with it.
    pub(super) fn learn_from(
        &self,
        hash_on: Option<&HashOn>,
    ) -> Result<Option<LearnFrom>, Invalid> {
        const KEY: &str = "learn_from";
        let part = hash_on.filter(|part| {
            let is_of_session = !matches!(part, HashOn::ClientIp | HashOn::Path);
            is_of_session && self.plain_http == Some(PlainHttp::Forward)
        });
        match (self.learn_from.as_deref(), part) {
            (None, part) => Ok(part.and_then(LearnFrom::for_requests_with)),
            (Some(text), Some(_)) => {
                LearnFrom::parse(text).map_err(|problem| Invalid::new(KEY, problem))
            }
            (Some(_), None) => {
                let mend = "has no effect without plain_http = \"forward\" and a hash_on of \
                            cookie:NAME, query:NAME or header:NAME: set these, or leave it out";
                Err(Invalid::new(KEY, mend))
            }
        }
    }
}

#[cfg(feature = "config")]
impl BackendConfig {
    /// Returns the element of the list with these settings: only the address where everything else
    /// has its default.
    pub(crate) fn of(settings: &BackendSettings) -> Self {
        let BackendSettings { address, weight, max_tunnels, is_backup, .. } = settings;
        let config = Self::new(address.authority.clone());
        if (*weight, *max_tunnels, *is_backup) == (1, None, false) {
            return config;
        }
        config.weight(*weight).max_tunnels(max_tunnels.unwrap_or(0)).backup(*is_backup)
    }
}

macro_rules! from_text {
    ($($text:ty),*) => {
        $(impl From<$text> for BackendConfig {
            fn from(address: $text) -> Self {
                Self::new(address)
            }
        })*
    };
}

from_text!(&str, String, &String, Box<str>, Cow<'_, str>);

#[cfg(feature = "config")]
mod table {
    //! An element of the list in TOML: a text, or a table.

    use std::fmt;

    use serde::de::value::MapAccessDeserializer;
    use serde::de::{Error, MapAccess, Visitor};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::BackendConfig;

    #[derive(Deserialize, Serialize)]
    #[serde(deny_unknown_fields)]
    struct Table {
        address: String,
        weight: Option<i64>,
        max_tunnels: Option<i64>,
        backup: Option<bool>,
    }

    struct Element;

    impl<'de> Visitor<'de> for Element {
        type Value = BackendConfig;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string, or a table with an address")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<BackendConfig, E> {
            Ok(text.into())
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<BackendConfig, A::Error> {
            let table = Table::deserialize(MapAccessDeserializer::new(map))?;
            let Table { address, weight, max_tunnels, backup } = table;
            Ok(BackendConfig { address, weight, max_tunnels, backup })
        }
    }

    impl<'de> Deserialize<'de> for BackendConfig {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            deserializer.deserialize_any(Element)
        }
    }

    impl Serialize for BackendConfig {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let Self { address, weight, max_tunnels, backup } = self.clone();
            if (weight, max_tunnels, backup) == (None, None, None) {
                return serializer.serialize_str(&address);
            }
            Table { address, weight, max_tunnels, backup }.serialize(serializer)
        }
    }
}
