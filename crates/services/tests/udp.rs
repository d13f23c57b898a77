//! UDP conversations go on while endpoints come and go, at every kind of address,
//! from pods, the node and outside, through every proxy this kernel has (IPVS:
//! see `vm.rs`).

#[path = "udp/mod.rs"]
mod clients;
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
fn a_client_with_a_fixed_port_keeps_being_answered(
    #[case] mode: ProxyMode,
    #[case] iptables: Option<Variant>,
) {
    clients::conversations_follow_their_endpoints(ProxySettings {
        iptables,
        ..ProxySettings::new(mode)
    });
}
