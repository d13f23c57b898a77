//! Why no route is made to a range.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::Name;

/// A range no route is made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The node.
    pub node: Name,
    /// Its range.
    pub range: IpNet,
    /// Why.
    pub reason: Reason,
}

/// Why no route is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The node has no address of the range's family.
    NoAddress,
    /// The node's address is not on a subnet of this node.
    OtherSubnet {
        /// The address.
        address: IpAddr,
    },
    /// The node's address is not on the subnet that the packets to this node's
    /// multicast group stay on.
    BeyondGroup {
        /// The address.
        address: IpAddr,
    },
    /// The node's address is one of this node's own.
    OwnAddress {
        /// The address.
        address: IpAddr,
    },
    /// The range is this node's own, or overlaps it.
    OwnRange {
        /// This node's range.
        own: IpNet,
    },
    /// The range overlaps another node's, which comes first by name.
    OtherNode {
        /// The other node.
        node: Box<str>,
        /// Its range.
        range: IpNet,
    },
    /// The range overlaps a subnet of the underlay: a route would cut nodes off.
    Underlay {
        /// The subnet.
        subnet: IpNet,
    },
    /// The range holds the underlay address of a node: packets in a tunnel to
    /// that node would go into the tunnel again.
    HoldsNode {
        /// The node.
        node: Box<str>,
        /// Its address.
        address: IpAddr,
    },
    /// This node has no interface that is up and could carry the packets.
    NoInterface,
    /// The peer has not told what has to be known of it.
    NoData,
    /// The hardware address of the peer's tunnel end is that of another node,
    /// which comes first by name.
    SameMac {
        /// The other node.
        node: Box<str>,
    },
    /// The public key of the peer's tunnel end is that of another node, which comes first
    /// by name.
    SameKey {
        /// The other node.
        node: Box<str>,
    },
    /// No back end of this node is one of the peer's.
    NothingInCommon {
        /// The peer's back ends.
        theirs: Vec<Box<str>>,
    },
    /// The peer's tunnel listens on another UDP port.
    OtherPort {
        /// This node's.
        ours: u16,
        /// The peer's.
        theirs: u16,
    },
    /// The peer tells this node's own public key.
    OwnKey,
    /// The cluster's pod ranges are not known, or this one is outside of them.
    NoClusterRange,
    /// Too little is left of the underlay's MTU for IPv6.
    TooSmall {
        /// What is left, bytes.
        mtu: u32,
    },
    /// The range cannot be one of pods: a single address, loopback, multicast or link-local.
    Unusable,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refusal {
            node,
            range,
            reason,
        } = self;
        write!(f, "no route to {range} of node {node}: {reason}")
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::NoAddress => write!(
                f,
                "the two nodes have no InternalIP of a family this back end could use; check the \
                 kubelets' --node-ip"
            ),
            Reason::OtherSubnet { address } => write!(
                f,
                "its address {address} is on no subnet of this node, and routes via the node itself \
                 work within one subnet only; add a tunnel for other subnets (cross-subnet), give \
                 the underlay's routers routes to the pod ranges, or put the nodes on one subnet"
            ),
            Reason::BeyondGroup { address } => write!(
                f,
                "its address {address} is not on the subnet of this node's, and packets to the \
                 multicast group end at the subnet's router; put the nodes on one subnet or use \
                 the back end vxlan, which needs no multicast"
            ),
            Reason::OwnAddress { address } => write!(
                f,
                "its address {address} is one of this node's own; two nodes share an address or \
                 this node is registered twice"
            ),
            Reason::OwnRange { own } => write!(
                f,
                "it overlaps this node's own range {own}; each node needs a range of its own"
            ),
            Reason::OtherNode { node, range } => write!(
                f,
                "it overlaps {range} of node {node}; each node needs a range of its own"
            ),
            Reason::Underlay { subnet } => write!(
                f,
                "it overlaps {subnet}, the subnet of an interface of this node that is not \
                 podwire's; choose a cluster CIDR apart from the underlay, or remove the interface \
                 if another network plugin left it behind"
            ),
            Reason::HoldsNode { node, address } => write!(
                f,
                "it holds {address}, the address of node {node} on the underlay; choose a cluster \
                 CIDR apart from the nodes' addresses"
            ),
            Reason::NoInterface => write!(f, "this node has no interface that is up"),
            Reason::NoData => write!(
                f,
                "the node has not told yet how it is reached; is podwire running on it, with the \
                 same back end?"
            ),
            Reason::SameMac { node } => write!(
                f,
                "its tunnel end has the same hardware address as that of node {node}; each node \
                 needs a name of its own"
            ),
            Reason::SameKey { node } => write!(
                f,
                "it has the same WireGuard key as node {node}; was the machine copied with its \
                 state directory? Rotate the key of one of them"
            ),
            Reason::NothingInCommon { theirs } => write!(
                f,
                "it has none of this node's back ends, but {}; give both one they share",
                if theirs.is_empty() {
                    "none".to_owned()
                } else {
                    theirs.join(", ")
                }
            ),
            Reason::OtherPort { ours, theirs } => write!(
                f,
                "its tunnel listens on UDP port {theirs} and this node's on {ours}; this back end \
                 needs the same on all nodes"
            ),
            Reason::OwnKey => write!(
                f,
                "it has the same WireGuard key as this node; was the machine copied with \
                 its state directory? Rotate the key of one of them"
            ),
            Reason::NoClusterRange => write!(
                f,
                "it is in none of the cluster's pod ranges known to this node, and this back end \
                 has one route for each of those; give the node the cluster CIDRs"
            ),
            Reason::TooSmall { mtu } => write!(
                f,
                "{mtu} bytes are left for a packet, and IPv6 needs 1280; raise the MTU of the \
                 underlay or choose a back end that adds less"
            ),
            Reason::Unusable => write!(f, "that is no range for pods"),
        }
    }
}
