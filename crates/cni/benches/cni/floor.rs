//! The floor: the objects of a pod with both families, made by netlink requests of this
//! very process, with nothing kept, checked or waited for. Once as the kernel gives them
//! by default, and once as podwire asks for them: a cable with one queue each way, whose
//! end on the node has no link-local address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use linux::address::{self, Address};
use linux::link::{self, Bridge, BridgePort, MacAddress, VethEnd};
use linux::namespace::NetworkNamespace;
use linux::neighbour;
use linux::netlink::{Request, Socket};
use linux::route::{self, Route};

use crate::Subject;

/// How the cable is made.
#[derive(Clone, Copy)]
pub(crate) enum Cable {
    /// As the kernel makes a veth pair by default.
    Plain,
    /// As podwire asks for it.
    Lean,
}

impl Cable {
    fn request(self, near: &VethEnd<'_>, master: Option<u32>, far: &VethEnd<'_>) -> Request {
        match self {
            // Its near end is up.
            Self::Plain => link::add_veth(near, master, far),
            Self::Lean => link::add_cable(near, master, far),
        }
    }

    fn up(self, index: u32) -> Vec<Request> {
        let mut requests = Vec::new();
        if let Self::Lean = self {
            requests.push(link::set_no_link_local(index));
        }
        requests.push(link::set_up(index));
        requests
    }
}

/// A pod's address, with its prefix length in the pod, and the gateway.
type Leg = (IpNet, IpAddr);

/// The pod's end.
fn furnish(
    pod: &NetworkNamespace,
    legs: &[Leg],
    gateway_mac: Option<MacAddress>,
) -> anyhow::Result<()> {
    let mut inside = pod.route_socket()?;
    let own = link::get(&mut inside, "eth0")?
        .ok_or_else(|| anyhow::anyhow!("the pod's eth0 is not there"))?;
    let mut requests = vec![link::set_up(1), link::set_up(own.index)];
    for (address, gateway) in legs {
        requests.push(address::add(
            &Address::new(own.index, *address).without_prefix_route(),
        ));
        if let Some(mac) = gateway_mac {
            requests.push(neighbour::set_permanent(own.index, *gateway, mac));
        }
        if !matches!(gateway, IpAddr::V6(gateway) if gateway.is_unicast_link_local()) {
            requests.push(route::add(&Route::to((*gateway).into()).dev(own.index)));
        }
        requests.push(route::add(&Route::default_of(*gateway).dev(own.index)));
    }
    inside.execute_all(&requests)?;
    Ok(())
}

/// Both ends of pod `number`'s cable.
struct Ends {
    name: String,
    near: MacAddress,
    pod: MacAddress,
}

impl Ends {
    fn of(number: usize) -> anyhow::Result<Self> {
        let low = u16::try_from(number)?.to_be_bytes();
        Ok(Self {
            name: format!("floor{number}"),
            near: MacAddress::local([1, 0, 0, low[0], low[1]]),
            pod: MacAddress::local([2, 0, 0, low[0], low[1]]),
        })
    }

    /// Makes the cable and gives the index of its near end.
    fn make(
        &self,
        socket: &mut Socket,
        cable: Cable,
        master: Option<u32>,
        pod: &NetworkNamespace,
    ) -> anyhow::Result<u32> {
        let end = |name, mac, namespace| VethEnd {
            name,
            mtu: None,
            mac: Some(mac),
            namespace,
        };
        let near = end(&self.name, self.near, None);
        let far = end("eth0", self.pod, Some(pod));
        socket.execute(&cable.request(&near, master, &far))?;
        let made = link::get(socket, &self.name)?
            .ok_or_else(|| anyhow::anyhow!("{} is not there", self.name))?;
        Ok(made.index)
    }
}

fn delete(number: usize) -> anyhow::Result<()> {
    link::delete_by_name(&mut Socket::open_route()?, &format!("floor{number}"))?;
    Ok(())
}

/// A pod with routes of the node's own.
pub(crate) struct Routed(pub(crate) Cable);

impl Subject for Routed {
    fn add(&self, number: usize, pod: &NetworkNamespace) -> anyhow::Result<()> {
        let low = u16::try_from(number)?;
        let [high, last] = low.to_be_bytes();
        let own: [IpAddr; 2] = [
            Ipv4Addr::new(10, 200, high, last).into(),
            Ipv6Addr::new(0xfd00, 0x200, 0, 0, 0, 0, 1, low).into(),
        ];
        let gateways: [IpAddr; 2] = [
            Ipv4Addr::new(169, 254, 1, 1).into(),
            Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into(),
        ];
        let mut socket = Socket::open_route()?;
        let ends = Ends::of(number)?;
        let cable = ends.make(&mut socket, self.0, None, pod)?;
        let mut requests = self.0.up(cable);
        for address in own {
            requests.push(neighbour::set_permanent(cable, address, ends.pod));
            requests.push(route::replace(&Route::to(address.into()).dev(cable)));
        }
        socket.execute_all(&requests)?;
        let legs = [0, 1].map(|family| (IpNet::from(own[family]), gateways[family]));
        furnish(pod, &legs, Some(ends.near))
    }

    fn delete(&self, number: usize, _: &NetworkNamespace) -> anyhow::Result<()> {
        delete(number)
    }
}

/// A pod on a bridge, which the first one makes.
pub(crate) struct Bridged(pub(crate) Cable);

const BRIDGE: &str = "floor";

impl Bridged {
    const GATEWAYS: [&str; 2] = ["10.200.255.254/16", "fd00:200::ffff/64"];

    fn bridge(socket: &mut Socket) -> anyhow::Result<u32> {
        if let Some(bridge) = link::get(socket, BRIDGE)? {
            return Ok(bridge.index);
        }
        socket.execute(&link::add_bridge(&Bridge {
            name: BRIDGE,
            mac: Some(MacAddress::local([3, 0, 0, 0, 0])),
            ..Bridge::default()
        }))?;
        let bridge =
            link::get(socket, BRIDGE)?.ok_or_else(|| anyhow::anyhow!("{BRIDGE} is not there"))?;
        let gateways = Self::GATEWAYS.map(str::parse::<IpNet>);
        for gateway in gateways {
            socket.execute(&address::add(&Address::new(bridge.index, gateway?)))?;
        }
        Ok(bridge.index)
    }
}

impl Subject for Bridged {
    fn add(&self, number: usize, pod: &NetworkNamespace) -> anyhow::Result<()> {
        let low = u16::try_from(number)?;
        let [high, last] = low.to_be_bytes();
        let own: [IpAddr; 2] = [
            Ipv4Addr::new(10, 200, high, last).into(),
            Ipv6Addr::new(0xfd00, 0x200, 0, 0, 0, 0, 0, low).into(),
        ];
        let mut socket = Socket::open_route()?;
        let bridge = Self::bridge(&mut socket)?;
        let ends = Ends::of(number)?;
        let cable = ends.make(&mut socket, self.0, Some(bridge), pod)?;
        let mut requests = vec![link::set_port(
            cable,
            BridgePort {
                hairpin: true,
                multicast: false,
                isolated: false,
            },
        )];
        requests.extend(self.0.up(cable));
        for address in own {
            requests.push(neighbour::set_permanent(bridge, address, ends.pod));
        }
        socket.execute_all(&requests)?;
        let gateways = Self::GATEWAYS.map(str::parse::<IpNet>);
        let legs = own
            .into_iter()
            .zip(gateways)
            .map(|(address, gateway)| {
                let gateway = gateway?;
                let leg = IpNet::new(address, gateway.prefix_len())?;
                Ok((leg, gateway.addr()))
            })
            .collect::<anyhow::Result<Vec<Leg>>>()?;
        furnish(pod, &legs, None)
    }

    fn delete(&self, number: usize, _: &NetworkNamespace) -> anyhow::Result<()> {
        delete(number)
    }
}
