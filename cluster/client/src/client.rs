//! The client core: its inputs and outputs, its tables, and its connections.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use cluster_proto::auth::Credentials;
use cluster_proto::ids::{ClientId, Incarnation, OsdId, PgId};
use cluster_proto::link::{Identity, LinkAction, LinkId, Millis, Outgoing};
use cluster_proto::locks::Locks;
use cluster_proto::map::{ClusterMap, MapChange, SchemaError};
use cluster_proto::wire::{Message, Nonce, Refusal, Role, Session, Welcome};
use cluster_proto::{Status, Uuid};

use crate::image::{Image, ImageId};
use crate::op::{ImageReply, Task, TaskId};
use crate::request::{Part, PartId, Window};
use crate::table::Table;
use crate::unsynced::Unsynced;

/// How often [`Client::handle_timeout`] wants to be called at least. Milliseconds.
const TICK_MS: u64 = 100;

/// What a client is told about itself at start.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Random, new for every instance, not 0.
    pub id: ClientId,
    /// The cluster.
    pub cluster: Uuid,
    /// Its key, if it has one.
    pub credentials: Option<Credentials>,
}

/// What the core asks of its driver. To be carried out in order.
#[derive(Debug)]
pub enum Output {
    /// Open a connection; report it with [`Client::handle_connected`] or [`Client::handle_closed`].
    Connect {
        /// Its name from now on.
        link: LinkId,
        /// Where to.
        address: SocketAddr,
    },
    /// Send a message. Nothing happens if the connection is gone.
    Send {
        /// Where.
        link: LinkId,
        /// What.
        message: Message,
    },
    /// Who is at the other end is settled: the connection's [`Channel`](cluster_proto::wire::Channel) must know before it decodes
    /// or encodes another message.
    Introduced {
        /// Which.
        link: LinkId,
        /// What it is to be sealed with, if it is.
        session: Option<Box<Session>>,
    },
    /// An operator should read this. No secrets.
    Notice(String),
    /// Close at once. Not reported back.
    Close(LinkId),
}

/// The deciding part of a client. One per thread, nothing shared.
///
/// An operation on an image is a *task*; it is cut into *parts*, each on one object, each holding its sectors against
/// other changes by this client until it is done; a part sends one *request* after another (mostly just one). Requests
/// are numbered; the lowest number without an answer is the floor that every request carries.
pub struct Client {
    pub(crate) identity: Identity,
    pub(crate) map: ClusterMap,
    pub(crate) images: Table<Image>,
    pub(crate) tasks: Table<Task>,
    pub(crate) parts: Table<Part>,
    pub(crate) locks: Locks<PartId>,
    pub(crate) window: Window,
    /// Answered changes that are not durable yet.
    pub(crate) unsynced: Unsynced,
    /// Tasks that could be cut further if there were room.
    pub(crate) uncut: VecDeque<TaskId>,
    /// Parts whose request has no connection to go to.
    pub(crate) unsent: VecDeque<PartId>,
    /// Parts whose request will be sent again at a time.
    pub(crate) paused: BTreeSet<(Millis, PartId)>,
    pub(crate) links: BTreeMap<OsdId, Outgoing>,
    last_link: u64,
    pub(crate) now: Millis,
    tick: Millis,
    pub(crate) outputs: VecDeque<Output>,
    pub(crate) replies: VecDeque<(ImageId, u64, Result<ImageReply, Status>)>,
}

impl Client {
    /// A client that knows nothing yet: feed it the cluster state.
    pub fn new(options: ClientOptions) -> Self {
        assert_ne!(options.id.0, 0, "client 0 stands for the cluster itself");
        let identity = Identity {
            cluster: options.cluster,
            role: Role::Client(options.id),
            incarnation: Incarnation(options.id.0),
            credentials: options.credentials,
        };
        Self {
            identity,
            map: ClusterMap::default(),
            images: Table::default(),
            tasks: Table::default(),
            parts: Table::default(),
            locks: Locks::default(),
            window: Window::default(),
            unsynced: Unsynced::default(),
            uncut: VecDeque::new(),
            unsent: VecDeque::new(),
            paused: BTreeSet::new(),
            links: BTreeMap::new(),
            last_link: 0,
            now: 0,
            tick: 0,
            outputs: VecDeque::new(),
            replies: VecDeque::new(),
        }
    }

    // ---- inputs

    /// A key of the cluster state has this value now (`None`: deleted). `config/`, `osd/` and `pg/` are of interest.
    ///
    /// # Errors
    /// The value breaks its schema; it is ignored.
    pub fn handle_map(&mut self, now: Millis, key: &str, value: Option<&[u8]>) -> Result<(), SchemaError> {
        self.now = now;
        match self.map.apply(key, value)? {
            MapChange::Osd(osd) => {
                if let Some(out) = self.links.get_mut(&osd) {
                    out.reset_backoff();
                }
                self.poll_links();
                self.send_unsent();
            }
            MapChange::Pg(PgId { pool, .. }) | MapChange::Pool(pool) => {
                self.repeat_lost(pool);
                self.resume_paused(Millis::MAX);
                self.send_unsent();
            }
            MapChange::None
            | MapChange::Cluster
            | MapChange::Settings
            | MapChange::Tree
            | MapChange::Suspicion(_)
            | MapChange::Scrub(_)
            | MapChange::OsdConfig(_) => {}
        }
        Ok(())
    }

    /// A connection that [`Output::Connect`] asked for is open. `nonce` is random, new for every connection.
    pub fn handle_connected(&mut self, now: Millis, link: LinkId, nonce: Nonce) {
        self.now = now;
        let Self { links, identity, outputs, .. } = self;
        let out = links.values_mut().find(|out| out.link() == Some(link));
        if let Some(message) = out.and_then(|out| out.handle_connected(identity, nonce)) {
            outputs.push_back(Output::Send { link, message });
        }
    }

    /// A connection ended or could not be opened.
    pub fn handle_closed(&mut self, now: Millis, link: LinkId) {
        self.now = now;
        if let Some(out) = self.by_link(link) {
            out.handle_closed(now);
            self.unsend(link);
            self.poll_links();
        }
    }

    /// A message arrived.
    pub fn handle_message(&mut self, now: Millis, link: LinkId, message: Message) {
        self.now = now;
        let Some(out) = self.by_link(link) else { return };
        out.heard(now);
        let is_ready = out.ready().is_some();
        match message {
            Message::Reply(reply) if is_ready => self.handle_reply(link, reply),
            Message::Pong { .. } if is_ready => out.handle_pong(),
            Message::Welcome(welcome) if !is_ready => self.handle_welcome(link, &welcome),
            Message::Refuse(why) => self.give_up(link, Some(why)),
            _ => self.give_up(link, None),
        }
    }

    fn handle_welcome(&mut self, link: LinkId, welcome: &Welcome) {
        let Self { links, identity, now, .. } = self;
        let Some(out) = links.values_mut().find(|out| out.link() == Some(link)) else { return };
        match out.handle_welcome(*now, identity, welcome) {
            Ok(introduced) => {
                if let Some(message) = introduced.answer {
                    self.outputs.push_back(Output::Send { link, message });
                }
                self.outputs.push_back(Output::Introduced { link, session: introduced.session });
                self.send_unsent();
            }
            Err(why) => {
                self.outputs.push_back(Output::Send { link, message: Message::Refuse(why) });
                self.give_up(link, Some(why));
            }
        }
    }

    /// One side refused, or the other said what an OSD may not say: try again later, perhaps elsewhere.
    fn give_up(&mut self, link: LinkId, why: Option<Refusal>) {
        if let (Some(why), Some(out)) = (why, self.by_link(link))
            && out.handle_refusal(why)
        {
            let text = format!("no connection to osd {}: {why}", out.target());
            self.outputs.push_back(Output::Notice(text));
        }
        self.outputs.push_back(Output::Close(link));
        self.handle_closed(self.now, link);
    }

    /// The time [`Client::poll_timeout`] named has come.
    pub fn handle_timeout(&mut self, now: Millis) {
        self.now = now;
        if now >= self.tick {
            self.tick = now + TICK_MS;
            self.poll_links();
            self.sync_aged();
        }
        self.resume_paused(now);
        self.send_unsent();
    }

    // ---- outputs

    /// Next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Next answer.
    pub fn poll_reply(&mut self) -> Option<(ImageId, u64, Result<ImageReply, Status>)> {
        self.replies.pop_front()
    }

    /// When to call [`Client::handle_timeout`].
    pub fn poll_timeout(&self) -> Millis {
        self.paused.first().map_or(self.tick, |(at, _)| self.tick.min(*at))
    }

    // ---- queries

    /// The cluster as this client knows it.
    pub fn map(&self) -> &ClusterMap {
        &self.map
    }

    /// Operations without an answer.
    pub fn tasks_in_flight(&self) -> usize {
        self.tasks.len()
    }

    // ---- connections

    fn by_link(&mut self, link: LinkId) -> Option<&mut Outgoing> {
        self.links.values_mut().find(|out| out.link() == Some(link))
    }

    /// The connection to an OSD if it is ready; otherwise sees to it that it becomes so.
    pub(crate) fn link_to(&mut self, osd: OsdId) -> Option<LinkId> {
        if let Entry::Vacant(entry) = self.links.entry(osd) {
            entry.insert(Outgoing::new(osd));
            self.poll_links();
        }
        self.links.get(&osd)?.ready().map(|(link, _)| link)
    }

    fn poll_links(&mut self) {
        let osds: Vec<_> = self.links.keys().copied().collect();
        for osd in osds {
            let address = self.map.osds.get(&osd).map(|state| state.address);
            loop {
                self.last_link += 1;
                let fresh = LinkId(self.last_link);
                let Some(out) = self.links.get_mut(&osd) else { break };
                match out.poll(self.now, address, fresh) {
                    None => break,
                    Some(LinkAction::Connect(address)) => {
                        self.outputs.push_back(Output::Connect { link: fresh, address });
                    }
                    Some(LinkAction::Ping(link)) => {
                        self.outputs.push_back(Output::Send { link, message: Message::Ping });
                    }
                    Some(LinkAction::Close(link)) => {
                        self.outputs.push_back(Output::Close(link));
                        self.unsend(link);
                    }
                }
            }
        }
    }
}
