//! `cargo xtask bpf`: compiles the programs for the kernel's BPF machine. What it
//! makes is committed, so that building podwire needs no compiler for BPF.

use anyhow::{Context, bail};
use sha2::{Digest as _, Sha256};

use crate::shell;

/// Sources, each of which becomes an object beside it.
const SOURCES: &[&str] = &["crates/linux/bpf/fast_path.c"];

/// Compiles all sources. Each object holds the digest of its source, by which
/// a test sees that it is of that source.
pub(crate) fn run() -> anyhow::Result<()> {
    if shell::find("clang").is_none() {
        bail!(
            "clang is missing, which compiles for BPF; on Debian and Ubuntu: \
             apt-get install clang libbpf-dev"
        );
    }
    // Where Debian has the headers of the machine's own instruction set.
    let headers = format!("-I/usr/include/{}-linux-gnu", std::env::consts::ARCH);
    for source in SOURCES {
        let path = shell::root().join(source);
        let text = std::fs::read(&path).with_context(|| format!("cannot read {source}"))?;
        let digest = Sha256::digest(&text);
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let digest = format!("-DDIGEST=\"{digest}\"");
        let object = path.with_extension("o");
        let mut command = shell::command(
            "clang",
            &[
                "-target", "bpf", "-mcpu=v3", "-O2", "-Wall", "-Wextra", "-Werror", &headers,
                &digest, "-c",
            ],
        );
        command.arg(&path).arg("-o").arg(&object);
        shell::run(command)?;
    }
    Ok(())
}
