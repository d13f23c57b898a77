//! The rules of names, a module for each clause: sections 2.2 to 2.5 of the
//! Kubernetes DNS-Based Service Discovery Specification 1.1.0, and the RFCs it
//! stands on; what neither says stands in modules of CoreDNS's options.

mod world;

mod coredns_namespaces;
mod coredns_wildcards;
mod k8s_2_2_schema_version;
mod k8s_2_3_cluster_ip;
mod k8s_2_4_headless;
mod k8s_2_5_external_name;
mod pods;
mod rfc1035_messages;
mod rfc2308_negative_answers;
mod rfc6891_edns;
mod rfc8020_nothing_below;
mod rfc8482_any;
mod search_lists;
