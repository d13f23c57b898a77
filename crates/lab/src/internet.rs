//! A lab's way to the machine's uplink, `lab up --internet`: a veth pair from
//! the lab's router to the machine's own network namespace, a table of rules
//! there, and forwarding. The only things of a lab in that namespace.
//!
//! What was changed is written down before it is changed, so that whoever takes
//! the lab down, after whatever end, can undo it. Several labs share the
//! machine's forwarding: the last one closed gives it back.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use linux::address::{self, Address};
use linux::link::{self, VethEnd};
use linux::namespace::NetworkNamespace;
use linux::netlink::{self, Socket};
use linux::nftables::{self, Nftables};
use linux::route::{self, Kind, Route};
use linux::sysctl::{self, Family, Setting};
use serde::{Deserialize, Serialize};

use crate::config::{self, Config};
use crate::paths::INTERNET;
use crate::underlay::hash;

mod rules;

/// The router's interface to the machine.
const UPLINK: &str = "internet";
/// The router's table.
const ROUTER_TABLE: &str = "podwire_lab";
/// `RTPROT_STATIC`.
const STATIC: u8 = 4;
/// `RTPROT_RA`: learned from router advertisements.
const ADVERTISED: u8 = 9;
/// How many links there are to choose from; the first is left out.
const LINKS: u64 = 128;

/// Why the way could not be opened or closed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot {action} {path}: {source}", path = path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(transparent)]
    Namespace(#[from] linux::namespace::Error),
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    #[error(transparent)]
    Nftables(#[from] nftables::Error),
    #[error(transparent)]
    Sysctl(#[from] sysctl::Error),
    #[error("link {0} is gone again")]
    Gone(String),
    #[error(
        "all addresses of 192.0.2.0/24 for links between labs and the machine are taken; take \
         another lab down, or look at ip address"
    )]
    Full,
    #[error("{0}; bring the lab up with --family v4, or without --internet")]
    NoV6(String),
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File {
        action,
        path,
        source,
    }
}

/// What labs changed of one network namespace.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    /// The labs that are open.
    labs: BTreeSet<String>,
    /// `net.ipv4.ip_forward` as it was, if it was changed.
    v4: Option<i64>,
    /// `net.ipv6.conf.all.forwarding` as it was, if it was changed.
    v6: Option<i64>,
}

impl Record {
    fn load(path: &Path) -> Result<Self, Error> {
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(io::Error::from)
                .map_err(file("read", path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(file("read", path)(error)),
        }
    }

    /// Whole or not at all.
    fn save(&self, path: &Path) -> Result<(), Error> {
        let new = path.with_extension("new");
        serde_json::to_vec(self)
            .map_err(io::Error::from)
            .and_then(|bytes| fs::write(&new, bytes))
            .and_then(|()| fs::rename(&new, path))
            .map_err(file("write", path))
    }
}

/// The record of the calling thread's network namespace, while nobody else has
/// it.
struct Ledger {
    path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl Ledger {
    fn path() -> Result<PathBuf, Error> {
        let own = NetworkNamespace::current()?
            .identity()
            .map_err(file("read", Path::new("/proc/thread-self/ns/net")))?;
        Ok(Path::new(INTERNET).join(format!("{}.json", own.inode)))
    }

    fn open(path: PathBuf) -> Result<Self, Error> {
        let lock_path = path.with_extension("lock");
        loop {
            fs::create_dir_all(INTERNET).map_err(file("make", Path::new(INTERNET)))?;
            let opened = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&lock_path);
            let lock = match opened {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(file("open", &lock_path))?,
            };
            lock.lock().map_err(file("lock", &lock_path))?;
            // The one before may have removed it.
            let opened = lock.metadata().map_err(file("read", &lock_path))?;
            if fs::metadata(&lock_path).is_ok_and(|named| named.ino() == opened.ino()) {
                return Ok(Self {
                    path,
                    lock_path,
                    _lock: lock,
                });
            }
        }
    }

    /// Removes the record, and the folders that only labs have made.
    fn remove(self) -> Result<(), Error> {
        for path in [&self.path, &self.lock_path] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(file("remove", path)(error));
                }
                _ => {}
            }
        }
        for folder in Path::new(INTERNET).ancestors().take(2) {
            // Others may be there.
            if fs::remove_dir(folder).is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// The name of a lab's table in the machine's namespace.
fn table(name: &str) -> String {
    format!("podwire_lab_{name}")
}

/// The machine's interface to a lab's router.
fn interface(name: &str) -> String {
    format!("pwl{:012x}", hash(name))
}

/// Opens the way from the lab's router to the calling thread's network
/// namespace, which is the machine's.
pub(crate) fn open(config: &Config, router: &NetworkNamespace) -> Result<(), Error> {
    let ledger = Ledger::open(Ledger::path()?)?;
    let mut record = Record::load(&ledger.path)?;
    let mut nft = Nftables::open()?;
    let tables = nft.tables(nftables::Family::Inet)?;
    // A record of another namespace, long gone, that had the same number.
    record.labs.retain(|lab| tables.contains(&table(lab)));
    if record.labs.is_empty() {
        record = Record::default();
    }
    let mut socket = Socket::open_route()?;
    let v6 = match (config.family, v6_obstacle(&mut socket)?) {
        (config::Family::V4, _) => false,
        (_, None) => true,
        (config::Family::V6, Some(why)) => return Err(Error::NoV6(why)),
        (config::Family::Dual, Some(why)) => {
            tracing::warn!("no way to the machine's uplink by IPv6: {why}");
            false
        }
    };
    let v4 = config.family != config::Family::V6;
    let ends: Vec<Ends> = free_ends(config, &mut socket)?
        .into_iter()
        .filter(|ends| if ends.router.is_ipv4() { v4 } else { v6 })
        .collect();
    let forwarding = |family, wanted: bool, recorded: Option<i64>| -> Result<_, Error> {
        let now = match wanted {
            true => Setting::forwarding(family).read()?,
            false => 1,
        };
        Ok(recorded.or((now != 1).then_some(now)))
    };
    record.v4 = forwarding(Family::V4, v4, record.v4)?;
    record.v6 = forwarding(Family::V6, v6, record.v6)?;
    record.labs.insert(config.name.clone());
    record.save(&ledger.path)?;

    // The rules first: there is no moment in which more is open than they say.
    let (name, interface) = (table(&config.name), interface(&config.name));
    let instead = tables.contains(&name);
    let own: Vec<IpNet> = ranges(config).collect();
    let router_addresses: Vec<IpAddr> = ends.iter().map(|ends| ends.router).collect();
    nft.commit(rules::machine(
        &name,
        instead,
        &interface,
        &router_addresses,
        &own,
    ))?;
    router.run(|| Nftables::open()?.commit(rules::router(ROUTER_TABLE, UPLINK)))??;

    link::delete_by_name(&mut socket, &interface)?;
    socket.execute(&link::add_veth(
        &VethEnd {
            name: &interface,
            ..VethEnd::default()
        },
        None,
        &VethEnd {
            name: UPLINK,
            namespace: Some(router),
            ..VethEnd::default()
        },
    ))?;
    Setting::of_interface(Family::V6, &interface, "accept_ra").write_if_present(0)?;
    let near = index(&mut socket, &interface)?;
    let mut inside = router.route_socket()?;
    let far = index(&mut inside, UPLINK)?;
    let mut requests = vec![link::set_up(far)];
    for ends in &ends {
        socket.execute(&address::add(&Address::new(near, ends.net(ends.machine))))?;
        requests.push(address::add(&Address::new(far, ends.net(ends.router))));
        requests.push(route::add(
            &Route::default_of(ends.machine).dev(far).protocol(STATIC),
        ));
    }
    // The lab's own addresses that nobody has stay inside.
    requests.extend(
        config
            .cluster
            .iter()
            .chain(&config.service)
            .map(|net| route::add(&Route::to(*net).kind(Kind::Unreachable).protocol(STATIC))),
    );
    inside.execute_all(&requests)?;

    for (family, wanted) in [(Family::V4, v4), (Family::V6, v6)] {
        if wanted {
            Setting::forwarding(family).write(1)?;
        }
    }
    Ok(())
}

/// Removes what [`open`] made in the calling thread's network namespace, or
/// what is left of it. Nothing is looked at for a lab that was not open.
pub(crate) fn close(name: &str) -> Result<(), Error> {
    let path = Ledger::path()?;
    // The lock alone is what a refused `open` leaves.
    if !path.exists() && !path.with_extension("lock").exists() {
        return Ok(());
    }
    let ledger = Ledger::open(path)?;
    let mut record = Record::load(&ledger.path)?;
    if record.labs.contains(name) {
        link::delete_by_name(&mut Socket::open_route()?, &interface(name))?;
        Nftables::open()?.remove_table(nftables::Family::Inet, &table(name))?;
        record.labs.remove(name);
        if record.labs.is_empty() {
            for (family, before) in [(Family::V4, record.v4), (Family::V6, record.v6)] {
                if let Some(before) = before {
                    Setting::forwarding(family).write_if_present(before)?;
                }
            }
        } else {
            record.save(&ledger.path)?;
        }
    }
    if record.labs.is_empty() {
        ledger.remove()?;
    }
    Ok(())
}

/// Why the machine can't forward IPv6, if so.
fn v6_obstacle(socket: &mut Socket) -> Result<Option<String>, Error> {
    match Setting::of_interface(Family::V6, "default", "disable_ipv6").read() {
        Ok(0) => {}
        Ok(_) => return Ok(Some("IPv6 is switched off on this machine".into())),
        Err(error) if error.is_absent() => {
            return Ok(Some("this machine's kernel has no IPv6".into()));
        }
        Err(error) => return Err(error.into()),
    }
    if Setting::forwarding(Family::V6).read()? == 1 {
        return Ok(None);
    }
    // A host that begins to forward forgets what routers advertised, and
    // listens to them no more, unless accept_ra is 2 (the kernel's
    // Documentation/networking/ip-sysctl.rst).
    let advertised = route::list(
        socket,
        route::Filter {
            protocol: Some(ADVERTISED),
            ..route::Filter::default()
        },
    )?;
    for route in advertised {
        let Some(index) = route.link else { continue };
        let Some(link) = link::get_by_index(socket, index)? else {
            continue;
        };
        if Setting::of_interface(Family::V6, &link.name, "accept_ra").read()? == 1 {
            return Ok(Some(format!(
                "this machine would lose the routes it learns from router advertisements on {}; \
                 sysctl net.ipv6.conf.{}.accept_ra=2 keeps them",
                link.name, link.name
            )));
        }
    }
    Ok(None)
}

/// The two addresses of a link, of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ends {
    machine: IpAddr,
    router: IpAddr,
}

impl Ends {
    /// An end with the prefix of a link of two (RFC 3021, RFC 6164).
    fn net(&self, end: IpAddr) -> IpNet {
        match end {
            IpAddr::V4(end) => {
                IpNet::V4(ipnet::Ipv4Net::new(end, 31).expect("31 is a prefix length of IPv4"))
            }
            IpAddr::V6(end) => {
                IpNet::V6(ipnet::Ipv6Net::new(end, 127).expect("127 is a prefix length of IPv6"))
            }
        }
    }

    /// Those of the link with this number, below [`LINKS`], in both families.
    fn of(number: u64) -> [Self; 2] {
        let number = number.rem_euclid(LINKS) as u8;
        let v4 = |last| IpAddr::from(Ipv4Addr::new(192, 0, 2, last));
        let v6 = |last: u8| {
            IpAddr::from(Ipv6Addr::new(
                0x2001,
                0xdb8,
                0x192,
                0,
                0,
                0,
                0,
                u16::from(last),
            ))
        };
        [
            Self {
                machine: v4(2 * number),
                router: v4(2 * number + 1),
            },
            Self {
                machine: v6(2 * number),
                router: v6(2 * number + 1),
            },
        ]
    }
}

/// Addresses that nobody on the machine has: where the name says, or behind it.
fn free_ends(config: &Config, socket: &mut Socket) -> Result<[Ends; 2], Error> {
    let taken: Vec<IpNet> = address::list(socket, None)?
        .into_iter()
        .map(|address| address.address)
        .collect();
    choose(hash(&config.name), &taken).ok_or(Error::Full)
}

fn choose(start: u64, taken: &[IpNet]) -> Option<[Ends; 2]> {
    (0..LINKS - 1)
        .map(|step| Ends::of(1 + (start % LINKS + step) % (LINKS - 1)))
        .find(|pair| {
            !pair
                .iter()
                .flat_map(|ends| [ends.machine, ends.router])
                .any(|end| taken.iter().any(|net| net.contains(&end)))
        })
}

/// All ranges of a lab.
fn ranges(config: &Config) -> impl Iterator<Item = IpNet> {
    let others = [&config.cluster, &config.service, &config.outside];
    config
        .all_subnets()
        .chain(others.into_iter().flatten().copied())
}

fn index(socket: &mut Socket, name: &str) -> Result<u32, Error> {
    link::get(socket, name)?
        .map(|link| link.index)
        .ok_or_else(|| Error::Gone(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Wanted;

    fn config(name: &str, family: config::Family) -> Config {
        Config::new(&Wanted {
            name: format!("{name}-{}", std::process::id()),
            family,
            nodes: 1,
            ..Wanted::default()
        })
        .unwrap()
    }

    fn forwarding() -> [i64; 2] {
        [Family::V4, Family::V6].map(|family| Setting::forwarding(family).read().unwrap())
    }

    fn objects() -> (usize, usize) {
        let links = link::list(&mut Socket::open_route().unwrap()).unwrap();
        let tables = Nftables::open()
            .unwrap()
            .tables(nftables::Family::Inet)
            .unwrap();
        (links.len(), tables.len())
    }

    /// Runs a test in a namespace that plays the machine, which does not
    /// forward.
    fn on_a_machine(test: impl FnOnce() + Send) {
        NetworkNamespace::create()
            .unwrap()
            .run(|| {
                for family in [Family::V4, Family::V6] {
                    Setting::forwarding(family).write(0).unwrap();
                }
                let before = objects();
                test();
                assert_eq!((objects(), forwarding()), (before, [0, 0]));
                let record = Ledger::path().unwrap();
                assert!(!record.exists() && !record.with_extension("lock").exists());
            })
            .unwrap();
    }

    #[test]
    fn the_last_lab_gives_forwarding_back() {
        on_a_machine(|| {
            let first = config("first", config::Family::Dual);
            let second = config("second", config::Family::Dual);
            let routers = [(); 2].map(|()| NetworkNamespace::create().unwrap());
            let (links, tables) = objects();
            open(&first, &routers[0]).unwrap();
            open(&second, &routers[1]).unwrap();
            assert_eq!(objects(), (links + 2, tables + 2));
            // Another lab that never was open changes nothing.
            close("third").unwrap();
            close(&first.name).unwrap();
            assert_eq!(objects(), (links + 1, tables + 1));
            assert_eq!(forwarding(), [1, 1]);
            close(&second.name).unwrap();
            close(&second.name).unwrap();
        });
    }

    #[test]
    fn forwarding_that_was_on_stays_on() {
        on_a_machine(|| {
            Setting::forwarding(Family::V4).write(1).unwrap();
            let lab = config("on", config::Family::Dual);
            open(&lab, &NetworkNamespace::create().unwrap()).unwrap();
            close(&lab.name).unwrap();
            assert_eq!(forwarding(), [1, 0]);
            Setting::forwarding(Family::V4).write(0).unwrap();
        });
    }

    #[test]
    fn a_lab_opened_again_after_a_crash_finds_its_leftovers() {
        on_a_machine(|| {
            let lab = config("again", config::Family::Dual);
            let before = objects();
            open(&lab, &NetworkNamespace::create().unwrap()).unwrap();
            open(&lab, &NetworkNamespace::create().unwrap()).unwrap();
            assert_eq!(objects(), (before.0 + 1, before.1 + 1));
            close(&lab.name).unwrap();
        });
    }

    #[test]
    fn a_machine_that_listens_to_router_advertisements_keeps_its_routes() {
        on_a_machine(|| {
            let peer = NetworkNamespace::create().unwrap();
            let mut socket = Socket::open_route().unwrap();
            socket
                .execute(&link::add_veth(
                    &VethEnd {
                        name: "uplink",
                        ..VethEnd::default()
                    },
                    None,
                    &VethEnd {
                        name: "far",
                        namespace: Some(&peer),
                        ..VethEnd::default()
                    },
                ))
                .unwrap();
            let far = link::get(&mut peer.route_socket().unwrap(), "far")
                .unwrap()
                .unwrap()
                .index;
            peer.route_socket()
                .unwrap()
                .execute(&link::set_up(far))
                .unwrap();
            let uplink = index(&mut socket, "uplink").unwrap();
            socket
                .execute(&route::add(
                    &Route::to("2000::/3".parse().unwrap())
                        .dev(uplink)
                        .protocol(ADVERTISED),
                ))
                .unwrap();
            let accept = Setting::of_interface(Family::V6, "uplink", "accept_ra");
            accept.write(1).unwrap();

            let only = config("only", config::Family::V6);
            let error = open(&only, &NetworkNamespace::create().unwrap()).unwrap_err();
            assert!(error.to_string().contains("accept_ra=2"), "{error}");
            close(&only.name).unwrap();

            let dual = config("dual", config::Family::Dual);
            open(&dual, &NetworkNamespace::create().unwrap()).unwrap();
            assert_eq!(forwarding(), [1, 0]);
            close(&dual.name).unwrap();

            accept.write(2).unwrap();
            open(&only, &NetworkNamespace::create().unwrap()).unwrap();
            assert_eq!(forwarding(), [0, 1]);
            close(&only.name).unwrap();
            link::delete_by_name(&mut socket, "uplink").unwrap();
        });
    }

    #[test]
    fn links_do_not_share_addresses() {
        let mut taken: Vec<IpNet> = Vec::new();
        for start in 0..LINKS - 1 {
            let pair = choose(7 * start, &taken).unwrap();
            for ends in pair {
                assert!(!taken.iter().any(|net| net.contains(&ends.router)));
                assert!(ends.net(ends.machine).contains(&ends.router));
                taken.push(ends.net(ends.machine));
            }
        }
        assert_eq!(choose(0, &taken), None);
        let all: [IpNet; 2] = rules::LINKS.map(|text| text.parse().unwrap());
        assert!(
            taken
                .iter()
                .all(|net| all.iter().any(|range| range.contains(net)))
        );
    }

    #[test]
    fn the_machines_interface_has_a_valid_name() {
        for name in ["a", "default", &"x".repeat(40)] {
            assert!(link::valid_name(&interface(name)), "{name}");
        }
        assert_ne!(interface("a"), interface("b"));
    }
}
