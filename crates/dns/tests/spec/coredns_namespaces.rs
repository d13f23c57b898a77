//! Namespaces are all served (CoreDNS's `namespaces` option restricts them; there is
//! none here), and those there are not do not exist, whatever is asked below them.

use hickory_proto::rr::RecordType::{A, AAAA, PTR, SRV};
use podwire_dns::model::{Addressing, Service, ServiceKey};

use crate::world::{World, addresses, ports};

#[test]
fn every_namespace_is_served_to_clients_of_every_other() {
    let mut world = World::new().pod("client", "10.200.1.5");
    for (n, namespace) in ["kube-system", "team-a", "1st"].into_iter().enumerate() {
        world.zone.add_namespace(namespace);
        world.zone.set_service(Service {
            key: ServiceKey::new(namespace, "web"),
            addressing: Addressing::Cluster(addresses(&format!("10.96.1.{n} fd00:96::1:{n}"))),
            ports: ports("http/tcp:80"),
        });
        for client in [None, Some("10.200.1.5"), Some("192.0.2.1")] {
            let name = format!("web.{namespace}.svc.cluster.local");
            assert_eq!(
                world.ask_as(&name, A, client),
                format!("A 10.96.1.{n}"),
                "{client:?}"
            );
            assert_eq!(
                world.ask_as(&name, AAAA, client),
                format!("AAAA fd00:96::1:{n}"),
                "{client:?}"
            );
            assert_eq!(
                world.ask_as(&format!("{n}.1.96.10.in-addr.arpa"), PTR, client),
                format!("PTR {name}."),
                "{client:?}"
            );
        }
    }
}

#[test]
fn nothing_is_below_a_namespace_there_is_not() {
    let world = World::new().cluster("web", "10.96.0.20", "http/tcp:80");
    for left in [
        "nowhere.svc",
        "web.nowhere.svc",
        "_tcp.web.nowhere.svc",
        "_http._tcp.web.nowhere.svc",
        "nowhere.pod",
        "10-200-1-5.nowhere.pod",
    ] {
        for kind in [A, AAAA, SRV] {
            let question = format!("{left}.cluster.local");
            assert_eq!(world.ask(&question, kind), "NXDOMAIN", "{left} {kind}");
        }
    }
}
