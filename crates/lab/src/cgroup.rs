//! The lab's part of the unified cgroup tree, where the machine has one.

use std::io;
use std::path::{Path, PathBuf};

/// Where the machine's unified tree is mounted, by the caller's mounts.
fn mount_point() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let is_unified = kind.starts_with("cgroup2 ");
        let point = mount.split(' ').nth(4)?;
        (is_unified && !point.contains('\\')).then(|| PathBuf::from(point))
    })
}

/// The lab's cgroup; none where there is no unified tree.
pub(crate) fn of_lab(lab: &str) -> Option<PathBuf> {
    Some(mount_point()?.join(format!("podwire-lab-{lab}")))
}

/// Moves the calling process into a new cgroup of the node and makes this the
/// root of a cgroup namespace, with room beside the caller's own cgroup for
/// those of containers. An error means: containers run without limits.
pub(crate) fn enter(lab: &str, node: &str) -> io::Result<()> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, "no unified cgroup tree is mounted");
    let lab = of_lab(lab).ok_or_else(missing)?;
    let root = lab.join(node);
    let own = root.join("init");
    std::fs::create_dir_all(&own)?;
    // Limits are an extra: without these controllers all else works.
    for controller in ["+cpu", "+memory", "+pids"] {
        let _ = std::fs::write(lab.join("cgroup.subtree_control"), controller);
    }
    std::fs::write(root.join("cgroup.procs"), "0")?;
    linux::process::unshare_cgroups().map_err(io::Error::other)?;
    // Out of the root again: a cgroup with processes of its own can't limit
    // others below it.
    std::fs::write(own.join("cgroup.procs"), "0")
}

/// Removes a cgroup and those below it; their processes must be gone.
pub(crate) fn remove(cgroup: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(cgroup) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    match std::fs::remove_dir(cgroup) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
