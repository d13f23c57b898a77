//! The virtual servers of this proxy as the kernel has them, for people.

use std::collections::HashSet;
use std::fmt::Write as _;

use linux::ipvs::{Destination, Forwarding, Ipvs};
use linux::nftables::{Family as TableFamily, Nftables};

use super::rules::{self, FrontendSets, TABLE};
use super::{IpvsError, own_servers, plan, read_owned};
use crate::Error;
use crate::model::{Family, FrontendKey};

/// The virtual servers of this proxy in the calling thread's network namespace
/// with their destinations and counters, those that are `wanted`; after each
/// frontend's own server its twin, if it has one ([`plan::twin`]). Empty where
/// this proxy does not run.
///
/// # Errors
/// If the kernel cannot be read.
pub fn listing(wanted: &dyn Fn(&FrontendKey) -> bool) -> Result<String, Error> {
    let mut nft = Nftables::open()?;
    let own: HashSet<FrontendKey> = own_servers(&read_owned(&mut nft)?).collect();
    let mut text = String::new();
    if own.is_empty() {
        return Ok(text);
    }
    let mut ipvs = Ipvs::open().map_err(IpvsError::from)?;
    let twins = twins(&mut nft)?;
    let mut servers: Vec<_> = ipvs
        .services()
        .map_err(IpvsError::from)?
        .into_iter()
        .map(|state| {
            let key = plan::key(&state.service.frontend);
            let owner = twins.iter().find(|(_, twin)| *twin == key);
            (
                owner.map_or(key, |(owner, _)| *owner),
                owner.is_some(),
                key,
                state,
            )
        })
        .filter(|(frontend, _, key, _)| own.contains(key) && wanted(frontend))
        .collect();
    servers.sort_unstable_by_key(|(frontend, twin, ..)| (*frontend, *twin));
    for (frontend, is_twin, key, state) in servers {
        // Writing to a string cannot fail.
        let _ = write!(text, "{key} scheduler {}", state.service.scheduler);
        if let Some(persistence) = state.service.persistence {
            let _ = write!(text, " persistent {}", persistence.seconds);
        }
        if is_twin {
            let _ = write!(text, ", for pods and the node that ask {frontend}");
        }
        text.push('\n');
        let destinations = ipvs
            .destinations(&plan::name(&key))
            .map_err(IpvsError::from)?;
        for state in destinations {
            let Destination {
                backend,
                forwarding,
                weight,
            } = state.destination;
            let _ = writeln!(
                text,
                "  to {backend} {} weight {weight}\n    connections {}, active {}, inactive {}; \
                 packets {}, bytes {}; replies {}, bytes {}",
                forwarding_name(forwarding),
                state.counters.connections,
                state.active,
                state.inactive,
                state.counters.packets_in,
                state.counters.bytes_in,
                state.counters.packets_out,
                state.counters.bytes_out,
            );
        }
    }
    Ok(text)
}

/// Frontends and their twins, as the rules have them.
fn twins(nft: &mut Nftables) -> Result<Vec<(FrontendKey, FrontendKey)>, Error> {
    let mut twins = Vec::new();
    let live = nft.sets(TableFamily::Inet, TABLE)?;
    for family in Family::ALL {
        let set = FrontendSets::of(family).twins;
        if live.iter().any(|one| one.name == set) {
            let elements = nft.elements(TableFamily::Inet, TABLE, set)?;
            let read = elements.iter().filter_map(|e| rules::read_twin(e, family));
            twins.extend(read);
        }
    }
    Ok(twins)
}

const fn forwarding_name(forwarding: Forwarding) -> &'static str {
    match forwarding {
        Forwarding::Masquerade => "masquerade",
        Forwarding::Local => "local",
        Forwarding::Tunnel => "tunnel",
        Forwarding::Direct => "direct",
    }
}
