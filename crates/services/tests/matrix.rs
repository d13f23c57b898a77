//! Who reaches what through every proxy this kernel has. `cargo nextest run
//! --test matrix --no-capture` prints the rows.

#[path = "matrix/mod.rs"]
mod rows;
mod world;

use podwire_services::iptables::Variant;
use podwire_services::{ProxyMode, ProxySettings};
use rstest::rstest;
use world::Attach;

fn nftables() -> ProxySettings {
    ProxySettings::new(ProxyMode::Nftables)
}

fn iptables(variant: Variant) -> ProxySettings {
    ProxySettings {
        iptables: Some(variant),
        ..ProxySettings::new(ProxyMode::Iptables)
    }
}

#[rstest]
fn who_reaches_what_under_which_address(
    #[values(nftables(), iptables(Variant::Nft), iptables(Variant::Legacy))]
    settings: ProxySettings,
    #[values(Attach::Routed, Attach::Bridge)] attach: Attach,
) {
    rows::check(settings, attach);
}
