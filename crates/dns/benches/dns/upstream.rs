//! The world outside: a server that knows `host-N.example.com` and nothing else.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};

pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
}

impl Upstream {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let socket = UdpSocket::bind(("127.0.0.1", 0))?;
        let address = socket.local_addr()?;
        // Ends with the process.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((length, client)) = socket.recv_from(&mut buffer) {
                if let Some(reply) = answer(&buffer[..length]) {
                    let _ = socket.send_to(&reply, client);
                }
            }
        });
        Ok(Self { address })
    }
}

fn answer(question: &[u8]) -> Option<Vec<u8>> {
    let question = Message::from_vec(question).ok()?;
    let query = question.queries.first()?;
    let name = query.name().to_ascii().to_ascii_lowercase();
    let mut reply = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
    reply.metadata.recursion_available = true;
    reply.add_query(query.clone());
    let exists = name.starts_with("host-")
        && name.ends_with(".example.com.")
        && name.matches('.').count() == 3;
    if exists && query.query_type() == RecordType::A {
        let data = RData::A(A(Ipv4Addr::new(192, 0, 2, 1)));
        reply.add_answer(Record::from_rdata(query.name().clone(), 3600, data));
    } else {
        let root = Name::root();
        let soa = SOA::new(root.clone(), root.clone(), 1, 1, 1, 1, 3600);
        reply.add_authority(Record::from_rdata(root, 3600, RData::SOA(soa)));
        if !exists {
            reply.metadata.response_code = ResponseCode::NXDomain;
        }
    }
    reply.to_vec().ok()
}
