//! Who reaches what, under which address: every row by real packets through every
//! proxy this kernel has, by the packet walkers over the planned rules of all three,
//! and in the service table. IPVS: see `vm.rs`. Each test prints
//! its table.

#[path = "matrix/mod.rs"]
mod rows;
mod world;

use std::collections::BTreeMap;
use std::net::IpAddr;

use podwire_services::iptables::Variant;
use podwire_services::simulate::{Planned, Verdict, simulate};
use podwire_services::table::Table;
use podwire_services::{FrontendKey, Protocol, ProxyMode, ProxySettings, TrafficPolicy};
use rows::plan::{PROTOCOLS, Plan, columns, facts, report, slices, web};
use rows::rule::{Caller, Endpoints, Outcome, Policy, Row, Target};
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
    rows::check(settings, attach, &PROTOCOLS);
}

/// All rows, each cell said by a function of the table in that state.
fn tables(title: &str, cell: impl Fn(&Table, &Row, Protocol, &Plan) -> Outcome) {
    let mut report = report(&PROTOCOLS);
    for endpoints in Endpoints::ALL {
        for policy in Policy::ALL {
            let mut table = Table::new(facts());
            table.set_service(web(policy));
            for slice in slices(endpoints) {
                table.set_slice(&slice);
            }
            for row in Row::of(endpoints, policy) {
                let seen: Vec<Outcome> = columns(&PROTOCOLS)
                    .map(|(protocol, plan)| cell(&table, &row, protocol, plan))
                    .collect();
                report.add(&row, &seen);
            }
        }
    }
    report.finish(title);
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("a literal")
}

fn name(address: IpAddr, plan: &Plan) -> String {
    let is_remote = address == ip(plan.remote);
    if is_remote { "remote" } else { "local" }.to_owned()
}

#[rstest]
#[case(ProxyMode::Nftables)]
#[case(ProxyMode::Iptables)]
#[case(ProxyMode::Ipvs)]
fn the_planned_rules_say_the_same(#[case] mode: ProxyMode) {
    let title = format!("planned rules of {mode}");
    tables(&title, |table, row, protocol, plan| {
        let rules = Planned::of(mode, table).expect("a plan the strict model takes");
        let source = ip(&plan.caller(row.caller));
        let (address, port) = plan.target(row.target);
        let mut seen = BTreeMap::new();
        for drawn in 0..2 {
            let walk = simulate(
                &rules,
                table.facts(),
                source,
                (ip(address), port),
                protocol,
                &mut |modulus| drawn % modulus,
            );
            match walk.verdict {
                Verdict::Service {
                    backend,
                    masqueraded,
                } => {
                    let name = name(backend.address, plan);
                    seen.insert(name, !masqueraded && row.caller != Caller::Node);
                }
                Verdict::Refused => return Outcome::Refused,
                Verdict::Dropped => return Outcome::Silence,
                Verdict::Direct { .. } => panic!("{row:?} is no Service's"),
            }
        }
        Outcome::Answered(seen)
    });
}

/// What the table says: which endpoints a frontend has. Who asks under which
/// address is the proxies' business.
#[test]
fn the_service_table_has_these_endpoints() {
    tables("service table", |table, row, protocol, plan| {
        let (address, port) = plan.target(row.target);
        let key = FrontendKey {
            address: ip(address),
            protocol,
            port,
        };
        let frontend = table.frontend(&key).expect("the Service has it");
        let internal = row.target == Target::ClusterIp;
        let local =
            frontend.policy == TrafficPolicy::Local && (internal || row.caller == Caller::Outside);
        let used = if local {
            &frontend.local
        } else {
            &frontend.cluster
        };
        if used.is_empty() {
            return if frontend.cluster.is_empty() {
                Outcome::Refused
            } else {
                Outcome::Silence
            };
        }
        let Outcome::Answered(rule) = row.rule() else {
            return Outcome::Silence;
        };
        let seen = used.iter().map(|backend| {
            let name = name(backend.address, plan);
            let own = rule.get(&name).copied().unwrap_or_default();
            (name, own)
        });
        Outcome::Answered(seen.collect())
    });
}
