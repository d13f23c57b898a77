//! The inside of a pod: its interface, addresses and routes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use linux::address::{self, Address};
use linux::link::{self, MacAddress};
use linux::netlink::{Request, Socket};
use linux::route::{self, Filter, Route, Scope};
use linux::sysctl::{Family, InterfaceSettings, Setting};
use linux::{namespace, neighbour};

use super::{DEADLINE, Order};
use crate::configuration::ConfiguredRoute;
use crate::error::Error;
use crate::result::{self, AddResult};

/// An address of the pod with its gateway.
pub(super) struct Leg {
    /// As the interface has it.
    pub(super) address: IpNet,
    /// Whether the subnet is on the wire, and so gets a route of its own.
    /// Otherwise all packets go by the gateway.
    pub(super) on_wire: bool,
    /// Next hop to everywhere else, if there is one.
    pub(super) gateway: Option<IpAddr>,
    /// Its hardware address when it is known for certain.
    pub(super) gateway_mac: Option<MacAddress>,
    /// What [`furnish`] found when the pod leads everywhere by another interface already.
    pub(super) further: Option<Further>,
}

/// An interface of a pod that has another one, by which it goes on to lead everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Further {
    /// Of this one's default route, which counts when the others are gone.
    pub(super) metric: u32,
    /// What this one leads to by its gateway: its subnet, unless another interface has an
    /// address there.
    pub(super) subnet: Option<IpNet>,
}

/// Whom a pod's interface can hear from, below IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    /// The node alone.
    Node,
    /// Others as well, but nothing that could lead the pod astray, see
    /// [`crate::bridge_guard`].
    Guarded,
    /// Others as well: pods, or what is on the network of the node's interface.
    Shared,
}

/// Route protocol of the pod's own routes, which are nobody's to sync:
/// `RTPROT_STATIC`.
const STATIC: u8 = 4;

/// Sets the pod's interface and loopback up, with addresses, routes and
/// settings, in one message exchange. `inside` is a socket of the pod's
/// namespace, `index` the interface's.
pub(super) fn furnish(
    inside: &mut Socket,
    order: &Order<'_>,
    index: u32,
    wire: Wire,
    legs: &mut [Leg],
) -> Result<(), Error> {
    find_others(inside, order, legs)?;
    let interface = &order.attachment.interface;
    if wire == Wire::Shared {
        order
            .namespace
            .visit_from(order.home, || listen_to_nobody(interface, legs))??;
    }
    let requests = requests(order, index, wire, legs);
    let outcomes = inside.attempt_all(&requests)?;
    let refused: Vec<_> = requests
        .into_iter()
        .zip(outcomes)
        .filter_map(|(request, outcome)| Some((request, outcome.err()?)))
        .collect();
    // Some runtimes switch IPv6 off in new namespaces.
    if refused.iter().any(|(_, error)| error.switched_off()) {
        order
            .namespace
            .visit_from(order.home, || switch_ipv6_on(interface))??;
        let again: Vec<_> = refused.into_iter().map(|(request, _)| request).collect();
        return Ok(inside.execute_all(&again)?);
    }
    match refused.into_iter().next() {
        Some((_, error)) => Err(error.into()),
        None => Ok(()),
    }
}

/// Looks for other interfaces of the pod that lead everywhere.
fn find_others(inside: &mut Socket, order: &Order<'_>, legs: &mut [Leg]) -> Result<(), Error> {
    if legs.iter().all(|leg| leg.gateway.is_none()) {
        return Ok(());
    }
    let filter = Filter {
        table: Some(route::TABLE_MAIN),
        ..Filter::default()
    };
    let mut defaults = route::list(inside, filter)?;
    defaults.retain(|route| route.destination.prefix_len() == 0);
    if defaults.is_empty() {
        return Ok(());
    }
    // This one has none yet.
    let addresses = address::list(inside, None)?;
    for (leg, reserved) in legs.iter_mut().zip(order.addresses) {
        let subnet = reserved.address.trunc();
        let metrics = defaults
            .iter()
            .filter(|route| route.destination == any(subnet.addr()))
            .map(|route| route.metric.unwrap_or(0));
        let elsewhere = addresses.iter().any(|a| subnet.contains(&a.address.addr()));
        leg.further = metrics.max().map(|last| Further {
            metric: last.saturating_add(1),
            subnet: (!leg.on_wire && !elsewhere).then_some(subnet),
        });
    }
    Ok(())
}

/// The pod's interface, where the node has none that names it.
pub(super) fn interface(inside: &mut Socket, order: &Order<'_>) -> Result<link::Link, Error> {
    let name = &order.attachment.interface;
    link::get(inside, name)?.ok_or_else(|| {
        Error::Io(format!(
            "interface {name} vanished from the pod while it was being set up"
        ))
    })
}

/// Waits until the pod's addresses can be used.
pub(super) fn wait(
    inside: &mut Socket,
    order: &Order<'_>,
    index: u32,
    legs: &[Leg],
) -> Result<(), Error> {
    let addresses: Vec<_> = legs.iter().map(|leg| leg.address.addr()).collect();
    let usable = address::are_usable(inside, index, &addresses)?
        || order.namespace.visit_from(order.home, || {
            address::wait_until_usable(inside, index, &addresses, DEADLINE)
        })??;
    if usable {
        return Ok(());
    }
    Err(Error::NotAvailable(format!(
        "the addresses of interface {} do not become usable",
        order.attachment.interface
    )))
}

/// Has the pod take nothing from who else is on the wire: no addresses and routes from
/// router advertisements, also when it has no IPv6 address by which anybody would know
/// that it understands them (CVE-2020-10749), and no redirects. None of it can be said
/// by netlink but what is among the [`requests`].
///
/// Where the node drops all that on its way, or is alone on the wire, there is no need,
/// and the walk to the settings, which takes the kernel longer with every namespace, is
/// spared. Alone, because advertisements and IPv6's redirects are never forwarded, so they
/// could come from the node alone, and IPv4's lead to whoever answers on the wire, which
/// is the node.
fn listen_to_nobody(interface: &str, legs: &[Leg]) -> Result<(), Error> {
    if legs.iter().any(|leg| leg.address.addr().is_ipv4()) {
        // On hosts the kernel accepts redirects if it or the interface says so.
        Setting::of_interface(Family::V4, "all", "accept_redirects").write_if_present(0)?;
    }
    if let Some(settings) = InterfaceSettings::open(Family::V6)? {
        for leaf in ["accept_ra", "accept_redirects"] {
            settings.write_if_present(interface, leaf, 0)?;
        }
    }
    Ok(())
}

fn switch_ipv6_on(interface: &str) -> Result<(), Error> {
    Ok(Setting::of_interface(Family::V6, interface, "disable_ipv6").write(0)?)
}

fn requests(order: &Order<'_>, own: u32, wire: Wire, legs: &[Leg]) -> Vec<Request> {
    let ipv4 = legs.iter().any(|leg| leg.address.addr().is_ipv4());
    let ipv6 = legs.iter().any(|leg| leg.address.addr().is_ipv6());
    // Loopback always has index 1, in every namespace (include/net/net_namespace.h).
    let mut requests = vec![link::set_up(LOOPBACK)];
    if ipv4 && wire == Wire::Shared {
        requests.push(link::set_no_redirects(own));
    }
    if ipv6 {
        // The kernel would look for duplicates of it for a second.
        requests.push(link::set_no_link_local(own));
    }
    requests.push(link::set_up(own));
    for leg in legs {
        let mut address = Address::new(own, leg.address);
        address.no_prefix_route = !leg.on_wire;
        requests.push(address::add(&address));
        if let (Some(gateway), Some(mac)) = (leg.gateway, leg.gateway_mac) {
            requests.push(neighbour::set_permanent(own, gateway, mac));
        }
        for route in routes(own, leg) {
            requests.push(route::add(&route));
        }
    }
    if ipv6 {
        let address = IpNet::new(order.pod_mac().link_local().into(), LINK_LOCAL_PREFIX)
            .expect("64 is a prefix length of IPv6");
        requests.push(address::replace(&Address::new(own, address)));
    }
    for configured in &order.configuration.routes {
        if configured.is_plain_default() {
            continue;
        }
        if let Some(hop) = hop(configured, legs) {
            let mut route = configured_route(own, configured, hop);
            if is_in_place(configured) {
                route.metric = further(configured.dst.addr(), legs).map(|further| further.metric);
            }
            requests.push(route::replace(&route));
        }
    }
    requests
}

/// Where a configured route leads.
#[derive(Clone, Copy)]
enum Hop {
    /// To a next hop.
    Gateway(IpAddr),
    /// To whoever is on the link.
    Link,
}

/// `None` for a route of a family that the pod does not have.
fn hop(route: &ConfiguredRoute, legs: &[Leg]) -> Option<Hop> {
    let v4 = route.dst.addr().is_ipv4();
    let mut family = legs
        .iter()
        .filter(|leg| leg.address.addr().is_ipv4() == v4)
        .peekable();
    family.peek()?;
    if let Some(gateway) = route.gw {
        return (gateway.is_ipv4() == v4).then_some(Hop::Gateway(gateway));
    }
    if route.scope.is_some_and(|scope| scope >= Scope::LINK) {
        return Some(Hop::Link);
    }
    family.find_map(|leg| leg.gateway).map(Hop::Gateway)
}

/// Whether the pod has another interface that leads everywhere in a family.
fn further(like: IpAddr, legs: &[Leg]) -> Option<Further> {
    legs.iter()
        .filter(|leg| leg.address.addr().is_ipv4() == like.is_ipv4())
        .find_map(|leg| leg.further)
}

/// Whether the pod gets a configured route.
pub(super) fn is_of(route: &ConfiguredRoute, legs: &[Leg]) -> bool {
    hop(route, legs).is_some()
}

fn configured_route(own: u32, configured: &ConfiguredRoute, hop: Hop) -> Route {
    let mut route = Route::to(configured.dst).protocol(STATIC);
    route = match hop {
        Hop::Gateway(gateway) => route.via(gateway).dev(own).onlink(),
        Hop::Link => route.dev(own),
    };
    let unset = |value: &u32| *value != 0;
    route.mtu = configured.mtu.filter(unset);
    route.advmss = configured.advmss.filter(unset);
    route.metric = configured.priority.filter(unset);
    route.table = configured.table.unwrap_or(route::TABLE_MAIN);
    if let Some(scope) = configured.scope {
        route.scope = Scope::from_number(scope);
    }
    route
}

/// Whether a configured route says more of the default route that there is.
fn is_in_place(configured: &ConfiguredRoute) -> bool {
    configured.gw.is_none()
        && configured.dst.prefix_len() == 0
        && configured
            .table
            .is_none_or(|table| table == route::TABLE_MAIN)
        && configured.priority.is_none_or(|priority| priority == 0)
}

/// Puts a configured route among a result's: the default route again, when it says
/// more of that.
pub(super) fn note(routes: &mut Vec<result::Route>, configured: &ConfiguredRoute) {
    let mut route = result::Route::new(configured.dst, configured.gw);
    route.other = configured.details();
    match routes.iter_mut().find(|r| r.destination == configured.dst) {
        Some(default) if is_in_place(configured) => default.other.extend(route.other),
        _ => routes.push(route),
    }
}

const LOOPBACK: u32 = 1;
/// Of link-local IPv6 addresses (RFC 4291, 2.5.6).
const LINK_LOCAL_PREFIX: u8 = 64;

/// The way to the gateway, and by it to everywhere else.
fn routes(own: u32, leg: &Leg) -> Vec<Route> {
    let mut routes = Vec::new();
    let Some(gateway) = leg.gateway else {
        return routes;
    };
    // Other interfaces may have the same gateway.
    let last = |mut route: Route| {
        route.metric = leg.further.map(|further| further.metric);
        route.dev(own).protocol(STATIC)
    };
    // IPv6 reaches link-local gateways without a route.
    let link_local = matches!(gateway, IpAddr::V6(gateway) if gateway.is_unicast_link_local());
    let on_wire = leg.on_wire && leg.address.contains(&gateway);
    if !(link_local || on_wire) {
        routes.push(last(Route::to(IpNet::from(gateway))));
    }
    if let Some(subnet) = leg.further.and_then(|further| further.subnet) {
        routes.push(Route::to(subnet).via(gateway).dev(own).protocol(STATIC));
    }
    routes.push(last(Route::default_of(gateway)));
    routes
}

/// Everywhere, in the family of an address.
pub(super) fn any(like: IpAddr) -> IpNet {
    let any: IpAddr = match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    IpNet::new(any, 0).expect("zero is a prefix length of both families")
}

/// Whether a route is what a result says.
fn agrees(route: &Route, wanted: &result::Route) -> bool {
    let number = |key| {
        let value = wanted.other.get(key)?.as_u64()?;
        u32::try_from(value).ok()
    };
    let is = |key, value: Option<u32>| number(key).is_none_or(|n| n == 0 || value == Some(n));
    let v6 = wanted.destination.addr().is_ipv6();
    route.destination == wanted.destination.trunc()
        && (wanted.gateway.is_none() || route.gateway == wanted.gateway)
        // The reference `sbr` behind this plugin puts them into a table of their own.
        && number("table").is_none_or(|table| route.table == table)
        && is("mtu", route.mtu)
        && is("advmss", route.advmss)
        && is("priority", route.metric)
        && (v6 || number("scope").is_none_or(|n| u32::from(route.scope.number()) == n))
}

/// Compares the inside of a pod with what ADD answered: the interface with its
/// hardware address, up; its addresses; its routes. What other plugins added
/// is left alone.
pub fn verify(
    namespace: &namespace::NetworkNamespace,
    interface: &str,
    expected: &AddResult,
) -> Result<(), Error> {
    let wrong = |what: String| Err(Error::Mismatch(what));
    let mut socket = namespace.route_socket()?;
    let Some(own) = link::get(&mut socket, interface)? else {
        return wrong(format!("the pod has no interface {interface}"));
    };
    if !own.up {
        return wrong(format!("interface {interface} of the pod is down"));
    }
    let index = expected
        .interfaces
        .iter()
        .position(|i| i.name == interface && i.sandbox.is_some());
    if let Some(mac) = index.and_then(|index| expected.interfaces[index].mac.as_ref())
        && own.mac.map(|mac| mac.to_string()) != Some(mac.to_lowercase())
    {
        return wrong(format!(
            "interface {interface} of the pod has not the hardware address {mac}"
        ));
    }
    let addresses = address::list(&mut socket, Some(own.index))?;
    for wanted in &expected.addresses {
        let ours = wanted.interface.is_none() || wanted.interface == index;
        if ours && !addresses.iter().any(|a| a.address == wanted.address) {
            return wrong(format!(
                "interface {interface} of the pod has lost its address {}",
                wanted.address
            ));
        }
    }
    let routes = route::list(&mut socket, Filter::default())?;
    for wanted in &expected.routes {
        let found = routes.iter().any(|route| agrees(route, wanted));
        if !found {
            return wrong(format!(
                "the pod has lost its route to {}",
                wanted.destination
            ));
        }
    }
    Ok(())
}
