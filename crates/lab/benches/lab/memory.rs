//! Memory of a lab's processes, as the kernel counts it.

use std::path::Path;

use anyhow::{Context, bail};

/// Resident memory in KiB.
pub(crate) struct Memory {
    pub(crate) median: u64,
    pub(crate) highest: u64,
}

/// The agents of a lab: every descendant of its supervisor that runs `podwire agent`.
pub(crate) fn of_agents(lab: &str) -> anyhow::Result<Memory> {
    let mut sizes = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        // A process that ends meanwhile is no agent of a running lab.
        if is_agent_of(&path, lab).unwrap_or(false) {
            sizes.push(resident(&path)?);
        }
    }
    sizes.sort_unstable();
    match (sizes.get(sizes.len() / 2), sizes.last()) {
        (Some(median), Some(highest)) => Ok(Memory {
            median: *median,
            highest: *highest,
        }),
        _ => bail!("found no agent of lab {lab}"),
    }
}

fn is_agent_of(process: &Path, lab: &str) -> anyhow::Result<bool> {
    let line = std::fs::read(process.join("cmdline"))?;
    if line.split(|byte| *byte == 0).nth(1) != Some(b"agent") {
        return Ok(false);
    }
    // Its log goes to the lab's directory.
    let log = std::fs::read_link(process.join("fd/2"))?;
    Ok(log.starts_with(format!("/run/podwire/lab/{lab}")) || is_below(process, lab)?)
}

/// Whether an ancestor has the lab's name among its arguments.
fn is_below(process: &Path, lab: &str) -> anyhow::Result<bool> {
    let mut path = process.to_owned();
    loop {
        let status = std::fs::read_to_string(path.join("status"))?;
        let parent = status
            .lines()
            .find_map(|line| line.strip_prefix("PPid:"))
            .context("a process has a parent")?
            .trim();
        if parent == "0" {
            return Ok(false);
        }
        path = Path::new("/proc").join(parent);
        let line = std::fs::read(path.join("cmdline"))?;
        if line
            .split(|byte| *byte == 0)
            .any(|word| word == lab.as_bytes())
        {
            return Ok(true);
        }
    }
}

fn resident(process: &Path) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(process.join("status"))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok())
        .context("the kernel counts resident memory")
}
