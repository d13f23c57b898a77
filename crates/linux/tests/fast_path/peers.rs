//! What the fast path knows of the other nodes' ranges.

use std::time::Instant;

use ipnet::IpNet;
use podwire_linux::fast_path::{Direction, FastPath, Outcome, Via, Way};
use rstest::rstest;

use crate::nodes::{Attach, address, nodes_on, range};
use crate::traffic::{ask, ask_until_taken, taken_connection};
use crate::wire::Wire;

#[rstest]
pub(crate) fn a_peers_range_that_is_forgotten_is_the_stacks(
    #[values(
        Wire::Plain,
        Wire::Vxlan { over_v6: false },
        Wire::Vxlan { over_v6: true },
        Wire::Gpe { over_v6: false },
        Wire::Gpe { over_v6: true },
        Wire::Multicast
    )]
    wire: Wire,
    #[values(false, true)] v6: bool,
) {
    let nodes = nodes_on(Attach::Routed, wire);
    let mut pair = taken_connection(&nodes, v6);
    let (fast, _) = nodes[0].fast.as_ref().unwrap();
    fast.remove_range(range(2, v6)).unwrap();
    let taken = nodes[0].taken();
    ask(&mut pair);
    assert_eq!(nodes[0].taken(), taken);
    assert!(nodes[0].count(Direction::Outbound, Outcome::Destination) > 0);
    assert!(nodes[0].count(Direction::Inbound, Outcome::Source) > 0);
    // Known again, and to be forgotten once more, which is no error.
    fast.set_range(range(2, v6), &nodes[0].way(v6)).unwrap();
    ask_until_taken(&nodes, &mut pair);
    fast.remove_range(range(2, v6)).unwrap();
    fast.remove_range(range(2, v6)).unwrap();
}

/// The times are printed for comparison, not judged.
#[test]
fn there_is_room_for_the_ranges_of_five_thousand_peers() {
    let fast = FastPath::load().unwrap();
    let ranges: Vec<IpNet> = (0..5000)
        .flat_map(|peer| {
            let four = format!("10.{}.{}.0/24", peer / 256, peer % 256);
            [four, format!("fd00:200:0:{peer:x}::/64")]
        })
        .map(|range| range.parse().unwrap())
        .collect();
    let way = Way {
        interface: 2,
        mtu: None,
        via: Via::Neighbour(address(2, false)),
    };
    let started = Instant::now();
    for range in &ranges {
        fast.set_range(*range, &way).unwrap();
    }
    let all = started.elapsed();
    let started = Instant::now();
    fast.set_range(ranges[77], &way).unwrap();
    let one = started.elapsed();
    println!("{} ranges: {all:?}, one: {one:?}", ranges.len());
    for range in &ranges {
        fast.remove_range(*range).unwrap();
    }
}
