//! The runtime's side of CNI (specification 1.1.0): finds the configuration
//! list, runs its plugins in order, keeps what they answered for the way back.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt;

use crate::{disk, paths};

/// Versions of the protocol this runtime speaks, the newest first.
const VERSIONS: [&str; 5] = ["1.1.0", "1.0.0", "0.4.0", "0.3.1", "0.3.0"];
/// The interface a pod's plugins make.
const INTERFACE: &str = "eth0";
/// A plugin that takes longer is ended.
const DEADLINE: Duration = Duration::from_secs(120);

/// Why a pod could not be connected or disconnected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("CNI configuration {}: {reason}", path.display())]
    Configuration { path: PathBuf, reason: String },
    #[error("CNI plugin {plugin}: not found in {searched}")]
    Missing { plugin: String, searched: String },
    #[error("CNI plugin {plugin} {command}: {reason}")]
    Plugin {
        plugin: String,
        command: &'static str,
        reason: String,
    },
    #[error("keeping the CNI result in {}: {source}", path.display())]
    Cache { path: PathBuf, source: io::Error },
}

/// A configuration list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Network {
    pub(crate) name: String,
    version: String,
    plugins: Vec<Map<String, Value>>,
}

impl Network {
    /// Reads the first usable file of the folder by name; none when there is
    /// none, with what was wrong with those that were passed over.
    pub(crate) fn find(dir: &Path) -> (Option<Self>, Vec<Error>) {
        let mut files: Vec<PathBuf> = dir
            .read_dir()
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                path.extension()
                    .and_then(|e| e.to_str())
                    .is_some_and(|e| matches!(e, "conflist" | "conf" | "json"))
            })
            .collect();
        files.sort();
        let mut errors = Vec::new();
        for path in files {
            let read = std::fs::read(&path)
                .map_err(|error| error.to_string())
                .and_then(|text| Self::parse(&text));
            match read {
                Ok(network) => return (Some(network), errors),
                Err(reason) => errors.push(Error::Configuration { path, reason }),
            }
        }
        (None, errors)
    }

    /// Reads a list, or a single plugin's configuration as a list of one.
    fn parse(text: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct File {
            #[serde(default)]
            name: String,
            cni_version: Option<String>,
            #[serde(default)]
            cni_versions: Vec<String>,
            plugins: Option<Vec<Map<String, Value>>>,
        }
        let file: File = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if file.name.is_empty() || file.name.contains(['/', '\0']) {
            return Err("the field name must name the network".into());
        }
        let plugins = match file.plugins {
            Some(plugins) => plugins,
            None => vec![serde_json::from_slice(text).map_err(|error| error.to_string())?],
        };
        if plugins.is_empty() {
            return Err("the field plugins is empty".into());
        }
        for (index, plugin) in plugins.iter().enumerate() {
            let kind = plugin
                .get("type")
                .and_then(Value::as_str)
                .unwrap_or_default();
            if kind.is_empty() || kind.contains('/') {
                return Err(format!("plugins[{index}].type must name a plugin's file"));
            }
        }
        let offered: Vec<String> = file
            .cni_version
            .into_iter()
            .chain(file.cni_versions)
            .collect();
        let version = if offered.is_empty() {
            // What the specification has a configuration without one mean is
            // older than lists; 0.3.0 is the oldest this runtime speaks.
            "0.3.0"
        } else {
            VERSIONS
                .into_iter()
                .find(|version| offered.iter().any(|offer| offer == version))
                .ok_or_else(|| {
                    format!(
                        "cniVersion {} is not one of {}",
                        offered.join(", "),
                        VERSIONS.join(", ")
                    )
                })?
        };
        Ok(Self {
            name: file.name,
            version: version.into(),
            plugins,
        })
    }

    /// What a plugin reads: its configuration with the list's name and version,
    /// the settings it says it can use, and what the plugin before it answered.
    fn input(
        &self,
        plugin: &Map<String, Value>,
        settings: &Value,
        previous: Option<&Value>,
    ) -> Value {
        let mut input = plugin.clone();
        input.insert("name".into(), json!(self.name));
        input.insert("cniVersion".into(), json!(self.version));
        let wanted = input.remove("capabilities");
        let runtime: Map<String, Value> = wanted
            .as_ref()
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter(|(_, on)| on.as_bool() == Some(true))
            .filter_map(|(name, _)| Some((name.clone(), settings.get(name)?.clone())))
            .collect();
        if !runtime.is_empty() {
            input.insert("runtimeConfig".into(), Value::Object(runtime));
        }
        if let Some(previous) = previous {
            input.insert("prevResult".into(), previous.clone());
        }
        Value::Object(input)
    }
}

/// A pod to connect or disconnect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Attachment {
    pub(crate) container_id: String,
    pub(crate) netns: PathBuf,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    /// Settings by capability: `portMappings`, `bandwidth`, `dns` …
    pub(crate) settings: Value,
}

impl Attachment {
    fn args(&self) -> String {
        format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            self.namespace, self.name, self.container_id, self.uid
        )
    }
}

/// What was done for a pod, kept for its DEL even if the configuration changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Cached {
    network: Network,
    attachment: Attachment,
    result: Option<Value>,
}

fn cache_path(uid: &str) -> PathBuf {
    paths::pod(uid).join("cni.json")
}

fn cache(cached: &Cached) -> Result<(), Error> {
    let path = cache_path(&cached.attachment.uid);
    disk::write_json(&path, cached).map_err(|source| Error::Cache { path, source })
}

/// Connects a pod; the addresses it got. When a plugin fails, those that ran
/// before it are undone.
pub(crate) async fn add(
    network: &Network,
    bin_dirs: &[PathBuf],
    attachment: &Attachment,
) -> Result<Vec<IpAddr>, Error> {
    let mut cached = Cached {
        network: network.clone(),
        attachment: attachment.clone(),
        result: None,
    };
    // Before the first plugin runs, so that a kubelet that dies meanwhile
    // leaves behind what has to be undone.
    cache(&cached)?;
    for plugin in &network.plugins {
        let input = network.input(plugin, &attachment.settings, cached.result.as_ref());
        match call("ADD", plugin, bin_dirs, attachment, &input).await {
            Ok(result) => cached.result = Some(result),
            Err(error) => {
                if let Err(undo) = delete_cached(bin_dirs, &cached).await {
                    tracing::warn!("undoing a failed CNI ADD: {undo}");
                }
                return Err(error);
            }
        }
    }
    cache(&cached)?;
    Ok(cached.result.as_ref().map(addresses).unwrap_or_default())
}

/// The pod's own addresses in a result: those of interfaces in its namespace.
fn addresses(result: &Value) -> Vec<IpAddr> {
    let interfaces = result["interfaces"].as_array();
    let in_pod = |ip: &Value| {
        let index = ip["interface"]
            .as_u64()
            .and_then(|i| usize::try_from(i).ok());
        match (index, interfaces) {
            (Some(index), Some(interfaces)) => interfaces
                .get(index)
                .and_then(|interface| interface["sandbox"].as_str())
                .is_some_and(|sandbox| !sandbox.is_empty()),
            _ => true,
        }
    };
    result["ips"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|ip| in_pod(ip))
        .filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok())
        .collect()
}

/// Disconnects a pod, by what was kept when it was connected. A pod that never
/// was is no error.
pub(crate) async fn delete(uid: &str, bin_dirs: &[PathBuf]) -> Result<(), Error> {
    let path = cache_path(uid);
    let cached: Option<Cached> = disk::read_json(&path).map_err(|source| Error::Cache {
        path: path.clone(),
        source,
    })?;
    let Some(mut cached) = cached else {
        return Ok(());
    };
    if !cached.attachment.netns.exists() {
        // The namespace is gone with its process: what the plugins keep
        // elsewhere is still to be freed.
        cached.attachment.netns = PathBuf::new();
    }
    delete_cached(bin_dirs, &cached).await?;
    disk::remove_file(&path).map_err(|source| Error::Cache { path, source })
}

async fn delete_cached(bin_dirs: &[PathBuf], cached: &Cached) -> Result<(), Error> {
    let network = &cached.network;
    // prevResult is given to DEL from 0.4.0 on.
    let previous = cached
        .result
        .as_ref()
        .filter(|_| !network.version.starts_with("0.3"));
    let mut first = Ok(());
    for plugin in network.plugins.iter().rev() {
        let input = network.input(plugin, &cached.attachment.settings, previous);
        let done = call("DEL", plugin, bin_dirs, &cached.attachment, &input).await;
        // All are asked: one that fails must not keep the others from freeing.
        if let (Err(error), true) = (done, first.is_ok()) {
            first = Err(error);
        }
    }
    first
}

async fn call(
    command: &'static str,
    plugin: &Map<String, Value>,
    bin_dirs: &[PathBuf],
    attachment: &Attachment,
    input: &Value,
) -> Result<Value, Error> {
    let kind = plugin
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let searched: Vec<String> = bin_dirs
        .iter()
        .map(|dir| dir.display().to_string())
        .collect();
    let path = bin_dirs
        .iter()
        .map(|dir| dir.join(kind))
        .find(|path| path.is_file())
        .ok_or_else(|| Error::Missing {
            plugin: kind.into(),
            searched: searched.join(":"),
        })?;
    let fail = |reason: String| Error::Plugin {
        plugin: kind.into(),
        command,
        reason,
    };
    let mut child = tokio::process::Command::new(path)
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", &attachment.container_id)
        .env("CNI_NETNS", &attachment.netns)
        .env("CNI_IFNAME", INTERFACE)
        .env("CNI_ARGS", attachment.args())
        .env("CNI_PATH", searched.join(":"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| fail(format!("starting it: {error}")))?;
    let talk = async {
        if let Some(mut stdin) = child.stdin.take() {
            // A plugin that ends without reading says why in its answer.
            let _ = stdin.write_all(input.to_string().as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(DEADLINE, talk)
        .await
        .map_err(|_| fail(format!("no answer within {} s", DEADLINE.as_secs())))?
        .map_err(|error| fail(error.to_string()))?;
    if !output.status.success() {
        return Err(fail(reason(&output)));
    }
    if command == "ADD" {
        serde_json::from_slice(&output.stdout)
            .map_err(|error| fail(format!("its answer is no JSON: {error}")))
    } else {
        Ok(Value::Null)
    }
}

/// What a failed plugin said.
fn reason(output: &std::process::Output) -> String {
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    if let Some(message) = answer["msg"].as_str() {
        let details = answer["details"].as_str().unwrap_or_default();
        let colon = if details.is_empty() { "" } else { ": " };
        return format!("{message}{colon}{details} (code {})", answer["code"]);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    format!("{}: {}", output.status, said.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a","capabilities":{"portMappings":true,"dns":false}},{"type":"b"}]}"#;

    #[test]
    fn the_first_valid_file_by_name_counts() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("05-bad.conflist"), "{").unwrap();
        std::fs::write(dir.path().join("10-good.conflist"), LIST).unwrap();
        std::fs::write(
            dir.path().join("20-other.conf"),
            r#"{"name":"o","type":"x"}"#,
        )
        .unwrap();
        std::fs::write(dir.path().join("00-not.txt"), LIST).unwrap();
        let (network, errors) = Network::find(dir.path());
        assert_eq!(network.unwrap().name, "n");
        assert_eq!(errors.len(), 1);
        assert!(errors[0].to_string().contains("05-bad.conflist"));
    }

    #[test]
    fn a_single_plugin_is_a_list_of_one() {
        let network = Network::parse(br#"{"name":"o","type":"x","cniVersion":"0.3.1"}"#).unwrap();
        assert_eq!(network.plugins.len(), 1);
        assert_eq!(network.version, "0.3.1");
    }

    #[rstest]
    #[case(r#"{"name":"n","plugins":[]}"#)]
    #[case(r#"{"plugins":[{"type":"a"}]}"#)]
    #[case(r#"{"name":"n","plugins":[{"type":"../a"}]}"#)]
    #[case(r#"{"name":"n","cniVersion":"9.0.0","plugins":[{"type":"a"}]}"#)]
    fn bad_lists_are_refused(#[case] text: &str) {
        assert!(Network::parse(text.as_bytes()).is_err());
    }

    #[test]
    fn the_newest_common_version_is_spoken() {
        let text = r#"{"name":"n","cniVersion":"0.4.0","cniVersions":["1.0.0","2.0.0"],"plugins":[{"type":"a"}]}"#;
        assert_eq!(Network::parse(text.as_bytes()).unwrap().version, "1.0.0");
    }

    #[test]
    fn plugins_get_the_settings_they_declared_and_the_result_before() {
        let network = Network::parse(LIST.as_bytes()).unwrap();
        let settings = json!({"portMappings": [{"hostPort": 1}], "dns": {}});
        let previous = json!({"ips": []});
        let first = network.input(&network.plugins[0], &settings, None);
        assert_eq!(
            first,
            json!({"type": "a", "name": "n", "cniVersion": "1.0.0", "runtimeConfig": {"portMappings": [{"hostPort": 1}]}})
        );
        let second = network.input(&network.plugins[1], &settings, Some(&previous));
        assert_eq!(second["prevResult"], previous);
        assert!(second.get("runtimeConfig").is_none());
    }

    #[test]
    fn only_addresses_inside_the_pod_are_its_own() {
        let result = json!({
            "interfaces": [{"name": "br0"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [
                {"interface": 0, "address": "10.0.0.1/24"},
                {"interface": 1, "address": "10.0.0.2/24"},
                {"interface": 1, "address": "fd00::2/64"}
            ]
        });
        let ips: Vec<String> = addresses(&result).iter().map(ToString::to_string).collect();
        assert_eq!(ips, ["10.0.0.2", "fd00::2"]);
    }
}
