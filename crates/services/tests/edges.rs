//! What the matrix leaves out, through every proxy this kernel has (IPVS: see
//! `vm.rs`).

#[path = "edges/mod.rs"]
mod cases;
#[path = "matrix/mod.rs"]
mod rows;
mod world;

use podwire_services::iptables::Variant;
use podwire_services::{ProxyMode, ProxySettings};
use rstest::rstest;

#[rstest]
#[case::nftables(ProxyMode::Nftables, None)]
#[case::iptables_nft(ProxyMode::Iptables, Some(Variant::Nft))]
#[case::iptables_legacy(ProxyMode::Iptables, Some(Variant::Legacy))]
fn ports_nobody_has_host_endpoints_source_ranges_and_invalid_packets(
    #[case] mode: ProxyMode,
    #[case] iptables: Option<Variant>,
) {
    cases::check(ProxySettings {
        iptables,
        ..ProxySettings::new(mode)
    });
}
