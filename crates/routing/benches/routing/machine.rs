//! The back ends this kernel lacks, measured by this very program in a virtual
//! machine that has them.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::lab::PODWIRE;

/// Set in the guest: the back ends to be measured there.
pub(crate) const BACKENDS: &str = "PODWIRE_BENCH_BACKENDS";
/// A line before and after what is meant for people.
pub(crate) const MARK: &str = "------ measured in the guest ------";
/// Emulation is slow, and not what is measured here.
const LIMIT: Duration = Duration::from_secs(600);
/// Most rounds and peers that fit into that time.
const ROUNDS: u16 = 9;
const PEERS: u16 = 1000;

/// What the guest prints.
pub(crate) fn measure(backends: &[&str], rounds: u16, peers: u16) -> anyhow::Result<String> {
    let this = std::env::current_exe()?;
    let podwire = std::env::var(PODWIRE).context("which podwire is measured?")?;
    let plugin = Path::new(&podwire).with_file_name("podwire-cni");
    let guest = vm::Guest::new()
        .needs(vm::Feature::Ipip)
        .needs(vm::Feature::Ip6Tunnel)
        .needs(vm::Feature::WireGuard)
        .program("wg")
        .program("bridge")
        .program("nft")
        .program("sysctl")
        .program("crun")
        .program(&podwire)
        .program(plugin)
        .program(&this)
        .environment(PODWIRE, &podwire)
        .environment(BACKENDS, &backends.join(","))
        .environment("PODWIRE_BENCH_ROUNDS", &rounds.min(ROUNDS).to_string())
        .environment("PODWIRE_BENCH_PEERS", &peers.min(PEERS).to_string())
        // For the labs; and each WireGuard peer has queues of its own in the kernel,
        // and namespaces that were measured go in the background.
        .memory(2048)
        .counts_instructions()
        .limit(LIMIT);
    let (code, output) = guest.run_script(&format!("ip link set lo up\n{}", this.display()))?;
    ensure!(code == 0, "the guest ended with {code}:\n{output}");
    let text = output.replace('\r', "");
    let parts: Vec<&str> = text.split(MARK).collect();
    ensure!(parts.len() == 3, "no tables from the guest:\n{text}");
    Ok(parts[1].trim().to_owned())
}
