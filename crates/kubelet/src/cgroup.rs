//! Limits by the unified cgroup hierarchy, where this machine lets us use it.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1 as k8s;
use rustix::fs::statfs;

use crate::plan::quantity;

const ROOT: &str = "/sys/fs/cgroup";
/// linux/magic.h.
const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;

/// Why containers of this node run without limits; none when they have them.
pub(crate) fn unusable() -> Option<String> {
    let kind = match statfs(ROOT) {
        Ok(kind) => kind,
        Err(errno) => return Some(format!("{ROOT}: {errno}")),
    };
    if kind.f_type != CGROUP2_SUPER_MAGIC {
        return Some(format!("{ROOT} is not the unified cgroup hierarchy"));
    }
    let own = Path::new(ROOT).join("podwire");
    if let Err(error) = std::fs::create_dir_all(&own) {
        return Some(format!("{}: {error}", own.display()));
    }
    for dir in [Path::new(ROOT), &own] {
        let control = dir.join("cgroup.subtree_control");
        if let Err(error) = std::fs::write(&control, "+cpu +memory") {
            return Some(format!(
                "enabling the cpu and memory controllers in {}: {error}",
                dir.display()
            ));
        }
    }
    None
}

/// Makes the cgroup of a container with its limits.
pub(crate) fn make(
    id: &str,
    resources: Option<&k8s::ResourceRequirements>,
) -> Result<PathBuf, String> {
    let dir = Path::new(ROOT).join("podwire").join(id);
    std::fs::create_dir_all(&dir).map_err(|error| format!("making {}: {error}", dir.display()))?;
    for (file, value) in settings(resources) {
        std::fs::write(dir.join(file), &value)
            .map_err(|error| format!("writing {value} to {}/{file}: {error}", dir.display()))?;
    }
    Ok(dir)
}

/// The files and values of a container's requests and limits.
fn settings(resources: Option<&k8s::ResourceRequirements>) -> Vec<(&'static str, String)> {
    let mut settings = Vec::new();
    let Some(resources) = resources else {
        return settings;
    };
    let get = |map: &Option<std::collections::BTreeMap<String, _>>, name: &str| {
        map.as_ref()
            .and_then(|map| map.get(name))
            .and_then(quantity::milli)
    };
    if let Some(memory) = get(&resources.limits, "memory") {
        settings.push(("memory.max", (memory / 1000).to_string()));
    }
    if let Some(cpu) = get(&resources.limits, "cpu") {
        // Microseconds of each period of 100 ms.
        settings.push(("cpu.max", format!("{} 100000", (cpu * 100).max(1000))));
    }
    if let Some(cpu) = get(&resources.requests, "cpu") {
        // The kubelet's mapping of 2..262144 shares to a weight of 1..10000.
        let shares = (cpu * 1024 / 1000).clamp(2, 262_144);
        settings.push((
            "cpu.weight",
            (1 + (shares - 2) * 9999 / 262_142).to_string(),
        ));
    }
    settings
}

/// Moves the calling process into the cgroup; its children follow.
pub(crate) fn enter(dir: &Path) -> Result<(), String> {
    std::fs::write(dir.join("cgroup.procs"), "0")
        .map_err(|error| format!("entering the cgroup {}: {error}", dir.display()))
}

/// Leaves and removes a container's cgroup after its end.
pub(crate) fn remove(dir: &Path) {
    if let Some(parent) = dir.parent().and_then(Path::parent) {
        let _ = std::fs::write(parent.join("cgroup.procs"), "0");
    }
    let _ = std::fs::remove_dir(dir);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_become_the_unified_hierarchys_files() {
        let resources: k8s::ResourceRequirements = serde_json::from_value(serde_json::json!({
            "limits": {"cpu": "500m", "memory": "64Mi"}, "requests": {"cpu": "1"}
        }))
        .unwrap();
        assert_eq!(
            settings(Some(&resources)),
            [
                ("memory.max", "67108864".to_owned()),
                ("cpu.max", "50000 100000".to_owned()),
                ("cpu.weight", "39".to_owned()),
            ]
        );
    }
}
