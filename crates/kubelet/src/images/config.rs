use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

/// What an image says about the processes started from it (the `config` of the
/// OCI image configuration).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Config {
    /// The program and its first arguments.
    #[serde(deserialize_with = "null_as_default")]
    pub entrypoint: Vec<String>,
    /// Default arguments, or the whole command without an entrypoint.
    #[serde(deserialize_with = "null_as_default")]
    pub cmd: Vec<String>,
    /// Variables as `NAME=value`.
    #[serde(deserialize_with = "null_as_default")]
    pub env: Vec<String>,
    /// Where processes start.
    pub working_dir: Option<String>,
    /// `USER`, `UID`, with `:GROUP` or `:GID`.
    pub user: Option<String>,
    /// The signal that asks the process to end, `SIGTERM` when absent.
    pub stop_signal: Option<String>,
    /// Free text.
    #[serde(deserialize_with = "null_as_default")]
    pub labels: BTreeMap<String, String>,
}

/// Image builders write `null` for empty lists.
fn null_as_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}
