//! What the connections of one listener share.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::backend::rotation::Rotation;
use crate::handshake::forward::HostHeader;
use crate::handshake::upgrade::UpgradeRequest;
use crate::settings::Settings;

/// What the connections of one section have in common.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) settings: Settings,
    /// What the log calls it.
    pub(crate) name: String,
    pub(crate) rotation: Rotation,
    pub(crate) open: Arc<AtomicUsize>,
    pub(crate) refusing: Arc<AtomicUsize>,
    told_of_host: AtomicBool,
}

impl Section {
    /// A section without connections, that listens on `local`.
    pub(crate) fn new(settings: Settings, local: SocketAddr) -> Self {
        Self {
            name: settings.name.clone().unwrap_or_else(|| local.to_string()),
            settings,
            rotation: Rotation::default(),
            open: Arc::default(),
            refusing: Arc::default(),
            told_of_host: AtomicBool::new(false),
        }
    }

    /// What a backend is called in the log and, if it is to be, in Host.
    pub(crate) fn backend_name(&self, index: usize) -> &str {
        self.settings.backends.get(index).map_or("", |backend| &backend.authority)
    }

    /// Tells once what the likely reason is when a backend refuses a browser behind a rewritten Host.
    pub(crate) fn note_refusal(&self, status: u16, request: &UpgradeRequest<'_>) {
        let is_likely = matches!(status, 403 | 404)
            && self.settings.host == HostHeader::Backend
            && request.fields.values("Origin").next().is_some();
        if is_likely && !self.told_of_host.swap(true, Ordering::Relaxed) {
            log::warn!(
                "event=hint section={} status={status} hint={:?}",
                self.name,
                "the backend refused a handshake with an Origin; if it compares Origin with Host, set host = \"preserve\" in this section",
            );
        }
    }
}

/// One of a limited number of connections; counted for as long as it lives.
pub(crate) struct Permit(Arc<AtomicUsize>);

impl Permit {
    /// `None` if there are `limit` already.
    pub(crate) fn take(count: &Arc<AtomicUsize>, limit: Option<usize>) -> Option<Self> {
        let permit = Self(Arc::clone(count));
        let before = count.fetch_add(1, Ordering::Relaxed);
        limit.is_none_or(|limit| before < limit).then_some(permit)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
