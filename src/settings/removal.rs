//! What becomes of the tunnels of what is removed.

/// Treatment of the open tunnels of what is removed: the key `on_removed` at the top of the
/// configuration for those of a section that a reload removes, that of a section for those of its
/// backends that a reload or a look-up removes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "config",
    derive(serde::Deserialize, serde::Serialize),
    serde(rename_all = "lowercase")
)]
#[non_exhaustive]
pub enum OnRemoved {
    /// They go on until they end by themselves, or with the program. The default.
    #[default]
    Keep,
    /// They are closed as `[drain]` says.
    Drain,
}
