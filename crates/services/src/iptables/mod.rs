//! The iptables proxy: the chains people know from kube-proxy, under names of
//! our own. Each change is one `iptables-restore` a family with the chains that
//! changed.

pub mod compile;
pub mod difference;
pub mod program;
pub mod save;

use std::ffi::{OsStr, OsString};

use linux::nftables::{self, Nftables};

use crate::Error;
use crate::data_plane::{Applied, DataPlane, Limit, ProxyMode, Traffic};
use crate::model::Family;
use crate::table::{Changes, Table};
use compile::IptablesTable;
use difference::State;
pub use program::{Programs, Reason, Variant};

/// The chains in the kernel of one network namespace.
#[derive(Debug)]
pub struct IptablesDataPlane {
    programs: Programs,
    reason: Reason,
    /// Of IPv4 and IPv6; absent when the kernel's state is not known.
    states: [Option<State>; 2],
    /// Whether a first sync was done: before it, what differs was not damaged
    /// by others but left by a previous run.
    begun: bool,
    /// For the nft variant.
    nft: Option<Nftables>,
    /// The rule set's generation when we last looked, for the nft variant:
    /// while it is the same, nobody changed anything.
    generation: Option<u32>,
}

impl IptablesDataPlane {
    /// Finds the programs and decides on the variant; changes nothing yet.
    ///
    /// # Errors
    /// If the programs are not installed.
    pub fn start(variant: Option<Variant>) -> Result<Self, Error> {
        let (programs, reason) = program::choose(variant, &path())?;
        tracing::info!(variant = programs.variant.name(), %reason, "iptables");
        let nft = match programs.variant {
            Variant::Nft => Nftables::open().ok(),
            Variant::Legacy => None,
        };
        Ok(Self {
            nft,
            programs,
            reason,
            states: [None, None],
            begun: false,
            generation: None,
        })
    }

    /// Why this variant was chosen.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }

    fn generation(&mut self) -> Option<u32> {
        Some(self.nft.as_mut()?.generation().ok()?.id)
    }
}

fn path() -> OsString {
    std::env::var_os("PATH").unwrap_or_default()
}

impl DataPlane for IptablesDataPlane {
    fn mode(&self) -> ProxyMode {
        ProxyMode::Iptables
    }

    fn variant(&self) -> Option<Variant> {
        Some(self.programs.variant)
    }

    fn traffic(&mut self) -> Result<Vec<Traffic>, Error> {
        let mut traffic = Vec::new();
        for family in Family::ALL {
            traffic.extend(save::traffic(&self.programs.save(family, true)?));
        }
        Ok(traffic)
    }

    fn limits(&self) -> Vec<Limit> {
        // The kernel's default, where the module is not loaded yet.
        let clients = std::fs::read_to_string("/sys/module/xt_recent/parameters/ip_list_tot")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(100);
        vec![Limit::IptablesLinear, Limit::IptablesClients(clients)]
    }

    /// One `iptables-restore` a family, which changes each table in one instant.
    fn sync(&mut self, table: &Table, changes: &Changes) -> Result<Applied, Error> {
        let mut applied = Applied {
            frontends: changes.frontends.clone(),
            ..Applied::default()
        };
        let asked = !changes.is_empty();
        for (index, family) in Family::ALL.into_iter().enumerate() {
            let known = self.states[index].take();
            let full = known.is_none();
            let mut state = match known {
                Some(state) => state,
                None => State::read(save::parse(&self.programs.save(family, false)?)),
            };
            let difference = state.difference(table, changes, family);
            if !difference.is_empty() {
                let text = save::render(&difference);
                // If it fails, the state stays unknown and is read again.
                self.programs.restore(family, &text)?;
                applied.elements += difference.size();
                applied.bytes += text.len();
                if full && self.begun && !asked {
                    applied.repaired.extend(difference.describe());
                }
            }
            state.apply(difference);
            self.states[index] = Some(state);
            applied.full |= full;
        }
        if applied.full {
            applied
                .frontends
                .extend(table.holders().map(|(key, _)| key));
        }
        if applied.bytes > 0 || applied.full {
            self.generation = self.generation();
        }
        self.begun = true;
        for text in &applied.repaired {
            tracing::warn!(
                variant = self.programs.variant.name(),
                "somebody changed podwire's rules of iptables: {text}; put right"
            );
        }
        Ok(applied)
    }

    /// Reads everything back, but for the nft variant while nobody commits to
    /// nftables.
    fn audit(&mut self, table: &Table) -> Result<Applied, Error> {
        let known = self.generation;
        if known.is_some() && known == self.generation() {
            return Ok(Applied::default());
        }
        self.states = [None, None];
        self.sync(table, &Changes::default())
    }
}

/// Removes all chains of ours from the calling thread's network namespace, and
/// the rules that lead to them, but for those of the variant `except`. Returns
/// whether there were any.
///
/// # Errors
/// If a program is missing with which they were made, or fails.
pub fn remove(except: Option<Variant>) -> Result<bool, Error> {
    let mut found = false;
    for variant in Variant::ALL {
        if Some(variant) == except || !may_be_there(variant)? {
            continue;
        }
        let programs = Programs::find(variant, &path())?;
        for family in Family::ALL {
            let state = State::read(save::parse(&programs.save(family, false)?));
            if state.is_empty() {
                continue;
            }
            programs.restore(family, &save::render(&state.removal()))?;
            found = true;
        }
    }
    Ok(found)
}

/// Whether chains of ours may be there; asked of the kernel, since a node that
/// never ran this proxy needs no iptables.
fn may_be_there(variant: Variant) -> Result<bool, Error> {
    match variant {
        Variant::Legacy => Ok(["ip_tables_names", "ip6_tables_names"].iter().any(|name| {
            // Not there: the kernel has no ip_tables.
            std::fs::read_to_string(format!("/proc/thread-self/net/{name}")).is_ok_and(|tables| {
                tables
                    .lines()
                    .any(|table| table == "nat" || table == "filter")
            })
        })),
        Variant::Nft => {
            let mut nft = Nftables::open()?;
            for family in [nftables::Family::Ip, nftables::Family::Ip6] {
                for table in IptablesTable::ALL {
                    let chains = nft.chains(family, table.name())?;
                    if chains
                        .iter()
                        .any(|chain| chain.name.starts_with(compile::PREFIX))
                    {
                        return Ok(true);
                    }
                }
            }
            Ok(false)
        }
    }
}

/// Whether a rule's comment, which begins with the Service's name, names this one.
fn is_about(line: &str, service: &str) -> bool {
    line.split_once("--comment \"")
        .and_then(|(_, comment)| comment.strip_prefix(service))
        .is_some_and(|rest| rest.starts_with([' ', ':', '"']))
}

/// The rules of this proxy as the kernel of the calling thread's network
/// namespace has them, as `iptables-save` prints them with counters; those that
/// name a Service in their comment if one is given. Nothing if the variant is
/// not installed.
///
/// # Errors
/// If the programs fail.
pub fn listing(variant: Variant, path: &OsStr, service: Option<&str>) -> Result<String, Error> {
    let programs = match Programs::find(variant, path) {
        Ok(programs) => programs,
        Err(program::Error::Missing(_)) => return Ok(String::new()),
        Err(error) => return Err(error.into()),
    };
    let mut text = String::new();
    for family in Family::ALL {
        for line in programs.save(family, true)?.lines() {
            let ours = line.contains(compile::PREFIX);
            if ours && service.is_none_or(|name| is_about(line, name)) {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    Ok(text)
}
