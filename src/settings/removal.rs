//! What a reload does with the tunnels of a section that it removes.

/// Treatment of the open tunnels of a section that a reload removes; the key `on_removed` at the
/// top of the configuration.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Deserialize, serde::Serialize,
)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum OnRemoved {
    /// They go on until they end by themselves, or with the program. The default.
    #[default]
    Keep,
    /// They are closed as `[drain]` says.
    Drain,
}
