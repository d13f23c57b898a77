//! The floor: the objects of a routed pod with both families, made by netlink
//! requests of this very process, with nothing kept, checked or waited for. Once with as
//! many queues as the kernel gives a veth by default, and once with one, as podwire's
//! cables have.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use linux::address::{self, Address};
use linux::link::{self, MacAddress, VethEnd};
use linux::namespace::NetworkNamespace;
use linux::neighbour;
use linux::netlink::{Request, Socket};
use linux::route::{self, Route};

use crate::Subject;

/// What asks for a veth pair: its near end, that one's bridge, and its peer.
type Pair = fn(&VethEnd<'_>, Option<u32>, &VethEnd<'_>) -> Request;

pub(crate) struct Routed(pub(crate) Pair);

impl Subject for Routed {
    fn add(&self, number: usize, pod: &NetworkNamespace) -> anyhow::Result<()> {
        let low = u16::try_from(number)?.to_be_bytes();
        let near_mac = MacAddress::local([1, 0, 0, low[0], low[1]]);
        let pod_mac = MacAddress::local([2, 0, 0, low[0], low[1]]);
        let legs: [(IpAddr, IpAddr); 2] = [
            (
                Ipv4Addr::new(10, 200, low[0], low[1]).into(),
                Ipv4Addr::new(169, 254, 1, 1).into(),
            ),
            (
                Ipv6Addr::new(0xfd00, 0x200, 0, 0, 0, 0, 1, u16::from_be_bytes(low)).into(),
                Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).into(),
            ),
        ];
        let mut socket = Socket::open_route()?;
        let name = format!("floor{number}");
        let near = VethEnd {
            name: &name,
            mtu: None,
            mac: Some(near_mac),
            namespace: None,
        };
        let far = VethEnd {
            name: "eth0",
            mtu: None,
            mac: Some(pod_mac),
            namespace: Some(pod),
        };
        socket.execute(&self.0(&near, None, &far))?;
        let cable =
            link::get(&mut socket, &name)?.ok_or_else(|| anyhow::anyhow!("{name} is not there"))?;
        let mut requests = vec![link::set_up(cable.index)];
        for (address, _) in legs {
            requests.push(neighbour::set_permanent(cable.index, address, pod_mac));
            requests.push(route::replace(&Route::to(address.into()).dev(cable.index)));
        }
        socket.execute_all(&requests)?;

        let mut inside = pod.route_socket()?;
        let own = link::get(&mut inside, "eth0")?
            .ok_or_else(|| anyhow::anyhow!("the pod's eth0 is not there"))?;
        let mut requests = vec![link::set_up(1), link::set_up(own.index)];
        for (address, gateway) in legs {
            let mut address = Address::new(own.index, IpNet::from(address));
            address.no_prefix_route = true;
            requests.push(address::add(&address));
            requests.push(neighbour::set_permanent(own.index, gateway, near_mac));
            if gateway.is_ipv4() {
                requests.push(route::add(&Route::to(gateway.into()).dev(own.index)));
            }
            requests.push(route::add(&Route::default_of(gateway).dev(own.index)));
        }
        inside.execute_all(&requests)?;
        Ok(())
    }

    fn delete(&self, number: usize, _: &NetworkNamespace) -> anyhow::Result<()> {
        link::delete_by_name(&mut Socket::open_route()?, &format!("floor{number}"))?;
        Ok(())
    }
}
