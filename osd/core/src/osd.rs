//! The OSD core: its inputs and outputs, its tables, and the dispatch of what comes in.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;

use cluster_proto::auth::Credentials;
use cluster_proto::ids::{ClientId, Incarnation, OsdId, PgId};
use cluster_proto::link::{Accepted, Identity, Introduced, LinkAction, LinkId, Millis};
use cluster_proto::map::{Activation, ClusterMap, MapChange, Member, OsdStats, PgScrub, SchemaError, keys};
use cluster_proto::shard::{ShardIndex, ShardOp, ShardOutcome};
use cluster_proto::status::Status;
use cluster_proto::wire::{Message, Nonce, Refusal, Role, Session, SubReply, Welcome};
use cluster_proto::{Epoch, Uuid};
use rustc_hash::FxBuildHasher;

use crate::ec::Codes;
use crate::latency::{Latencies, OpClass};
use crate::links::{Caller, Links};
use crate::op::{Kind, Local, Op, OpId, Ops};
use crate::pace::RecoveryPace;
use crate::pg::{Owed, Pg, PgSummary, PgTable};
use crate::purge::Purge;
use crate::request::HeldBytes;
use crate::scrub::ScrubPace;
use crate::secondary::HeldQuery;
use crate::slow::{Answerer, SlowLog};

/// How often [`Osd::handle_timeout`] wants to be called. Milliseconds.
const TICK_MS: u64 = 100;

/// What an OSD is told about itself at start.
#[derive(Clone, Debug)]
pub struct OsdOptions {
    /// Its number.
    pub id: OsdId,
    /// Its cluster.
    pub cluster: Uuid,
    /// This run: random.
    pub incarnation: Incarnation,
    /// When it began.
    pub started: Millis,
    /// What the time of day was then. Seconds since 1970; only scrubs go by it.
    pub started_unix: u64,
    /// The cluster's key, if it has one.
    pub credentials: Option<Credentials>,
    /// Operations that take so long are told of ([`Output::Warning`]); 0: none.
    pub slow_operation_ms: Millis,
}

/// What the core asks of its driver. To be carried out in order.
#[derive(Debug)]
pub enum Output {
    /// Open a connection; report it with [`Osd::handle_connected`] or [`Osd::handle_closed`].
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
    /// Send what is queued, then close. Not reported back.
    Close(LinkId),
    /// Submit to our own store; the outcome comes back through [`Osd::handle_local`] with the tag.
    Local {
        /// Comes back.
        tag: u64,
        /// The operation.
        op: ShardOp,
    },
    /// Make the activation record of the PG durable in the state store, provided that the PG's map there still has its
    /// epoch; then call [`Osd::handle_activated`].
    Activate {
        /// The PG.
        pg: PgId,
        /// The record.
        record: Activation,
    },
    /// Report in the state store that these OSDs cannot be reached (empty: that all can). Replaces the report before.
    Suspect(Vec<Member>),
    /// Something an operator should see.
    Notice(String),
    /// Something abnormal: a slow operation, data that cannot be read.
    Warning(String),
}

/// The deciding part of an OSD. Driven by `osd` (the daemon) and by the simulator.
///
/// Owns no data: payloads pass through by reference count. Every operation lives in a slot of `ops` until it is answered;
/// nothing resumes in the middle of a function.
pub struct Osd {
    pub(crate) options: OsdOptions,
    identity: Identity,
    pub(crate) map: ClusterMap,
    pub(crate) links: Links,
    pub(crate) pgs: PgTable,
    pub(crate) ops: Ops,
    /// Client requests that are held here, so that one sent twice is carried out once.
    pub(crate) held: HashMap<(ClientId, u64), OpId, FxBuildHasher>,
    pub(crate) held_bytes: HeldBytes,
    /// Requests that got their object and start at the end of the present input.
    pub(crate) ready: VecDeque<OpId>,
    /// Free bytes of the members' stores, as last heard.
    pub(crate) free_bytes: BTreeMap<OsdId, u64>,
    /// Queries of primaries whose map is ahead of ours.
    pub(crate) early_queries: BTreeMap<PgId, HeldQuery>,
    /// PGs that wait for a change of our store that was begun for another PG, which had some of their objects then.
    pub(crate) inherited: BTreeMap<OpId, Vec<PgId>>,
    /// What was promised for PGs that are no more.
    pub(crate) owed: Vec<Owed>,
    pub(crate) outputs: VecDeque<Output>,
    pub(crate) stats: OsdStats,
    /// The present time, for measurements. Microseconds.
    pub(crate) now_us: u64,
    pub(crate) latencies: Box<Latencies>,
    pub(crate) slow: SlowLog,
    /// When we last asked for our registration and found it.
    pub(crate) registered: Millis,
    pub(crate) recovery: RecoveryPace,
    pub(crate) scrub: ScrubPace,
    pub(crate) code: Codes,
    pub(crate) purge: Purge,
    /// Our store was given lazy changes in this run: what it shows need not be durable.
    pub(crate) lazy_seen: bool,
    suspects: BTreeSet<Member>,
    last_refusal: String,
    tick: Millis,
}

impl Osd {
    /// An OSD that knows nothing yet: feed it the cluster state.
    pub fn new(options: OsdOptions) -> Self {
        let identity = Identity {
            cluster: options.cluster,
            role: Role::Osd(options.id),
            incarnation: options.incarnation,
            credentials: options.credentials.clone(),
        };
        Self {
            stats: OsdStats { incarnation: options.incarnation, ..OsdStats::default() },
            now_us: options.started * 1_000,
            latencies: Box::default(),
            slow: SlowLog::new(options.slow_operation_ms),
            options,
            identity,
            map: ClusterMap::default(),
            links: Links::default(),
            pgs: PgTable::default(),
            ops: Ops::default(),
            held: HashMap::default(),
            held_bytes: HeldBytes::default(),
            ready: VecDeque::new(),
            free_bytes: BTreeMap::new(),
            early_queries: BTreeMap::new(),
            inherited: BTreeMap::new(),
            owed: Vec::new(),
            outputs: VecDeque::new(),
            registered: 0,
            recovery: RecoveryPace::default(),
            scrub: ScrubPace::default(),
            code: Codes::default(),
            purge: Purge::default(),
            lazy_seen: false,
            suspects: BTreeSet::new(),
            last_refusal: String::new(),
            tick: 0,
        }
    }

    // ---- inputs

    /// The time in microseconds, on the same clock as the milliseconds of the other inputs. It is only measured with; without it
    /// latencies are those in milliseconds. Once in each turn of the driver, before anything else, is enough.
    pub fn handle_clock(&mut self, now_us: u64) {
        self.now_us = self.now_us.max(now_us);
    }

    /// A key of the cluster state has this value now (`None`: deleted). Events of one range must come in their order.
    ///
    /// # Errors
    /// The value breaks its schema; it is ignored.
    pub fn handle_map(
        &mut self,
        now: Millis,
        shard: &mut dyn ShardIndex,
        key: &str,
        value: Option<&[u8]>,
    ) -> Result<(), SchemaError> {
        if value.is_none() && keys::pg_record(key).is_some_and(|pg| self.outlives(pg)) {
            return Ok(());
        }
        match self.map.apply(key, value)? {
            MapChange::None
            | MapChange::Cluster
            | MapChange::Tree
            | MapChange::Scrub(_)
            | MapChange::Suspicion(_)
            | MapChange::OsdConfig(_) => {}
            MapChange::Settings => self.recovery.apply(&self.map.settings),
            MapChange::Pool(pool) => {
                if let Some(config) = self.map.pools.get(&pool) {
                    shard.set_pool(pool, config.pg_count);
                }
                let mut of_pool: Vec<_> = self.map.pgs.keys().filter(|pg| pg.pool == pool).copied().collect();
                if !self.map.pools.contains_key(&pool) {
                    of_pool.extend(self.pgs.keys().filter(|pg| pg.pool == pool));
                }
                for pg in of_pool {
                    self.pg_update(now, shard, pg);
                }
            }
            MapChange::Osd(osd) => {
                if let Some(out) = self.links.outgoing.get_mut(&osd) {
                    out.reset_backoff();
                }
                self.poll_links(now, shard);
            }
            MapChange::Pg(pg) => {
                self.pg_update(now, shard, pg);
                self.note_leftovers(shard, pg);
            }
        }
        self.start_ready(shard);
        Ok(())
    }

    /// Somebody connected; `nonce` is random, new for every connection. Returns the connection's name.
    pub fn handle_accepted(&mut self, now: Millis, nonce: Nonce) -> LinkId {
        self.links.accept(now, nonce)
    }

    /// A connection that [`Output::Connect`] asked for is open. `nonce` is random, new for every connection.
    pub fn handle_connected(&mut self, _now: Millis, link: LinkId, nonce: Nonce) {
        let Self { links, identity, outputs, .. } = self;
        let out = links.outgoing_by_link(link);
        if let Some(message) = out.and_then(|out| out.handle_connected(identity, nonce)) {
            outputs.push_back(Output::Send { link, message });
        }
    }

    /// A connection ended or could not be opened. Also for those that broke the protocol, which the driver closes.
    pub fn handle_closed(&mut self, now: Millis, shard: &mut dyn ShardIndex, link: LinkId) {
        if self.links.incoming.contains_key(&link) {
            return self.forget_caller(link);
        }
        if let Some(out) = self.links.outgoing_by_link(link) {
            let (osd, was_ready) = (out.target(), out.ready().is_some());
            out.handle_closed(now);
            if was_ready {
                self.peer_lost(now, shard, osd);
            }
            self.report_suspects();
            self.start_ready(shard);
        }
    }

    /// A message arrived.
    pub fn handle_message(&mut self, now: Millis, shard: &mut dyn ShardIndex, link: LinkId, message: Message) {
        self.handle_clock(now * 1_000);
        if let Some(incoming) = self.links.incoming.get_mut(&link) {
            incoming.heard = now;
            let caller = incoming.caller;
            if !self.handle_from_caller(now, shard, link, caller, message) {
                self.refuse(link, Refusal::NotHello);
            }
        } else {
            self.handle_from_peer(now, shard, link, message);
        }
        self.start_ready(shard);
    }

    /// Our store finished an operation.
    pub fn handle_local(&mut self, now: Millis, shard: &mut dyn ShardIndex, tag: u64, outcome: ShardOutcome) {
        self.handle_clock(now * 1_000);
        let id = OpId(tag);
        let Some(op) = self.ops.get_mut(id) else {
            debug_assert!(false, "a store outcome for an unknown operation");
            return;
        };
        let pg = op.pg;
        let took = self.now_us - op.asked_us;
        let op_class = op.class;
        self.latencies.store[op_class as usize].add(took);
        op.answered(Answerer::Own, took);
        let was_mutation = std::mem::replace(&mut op.local, Local::None) == Local::Mutation;
        let own = self.pgs.get(&pg).map_or(0, Pg::own);
        let has_failed = op_class == OpClass::Write && matches!(outcome, ShardOutcome::Failed(_));
        self.handle_outcome(now, shard, id, own, outcome);
        if has_failed {
            self.refuse_queued(now, shard, pg);
        }
        if was_mutation {
            self.local_mutation_ended(now, shard, pg);
            for part in self.inherited.remove(&id).unwrap_or_default() {
                self.local_mutation_ended(now, shard, part);
            }
        }
        self.start_ready(shard);
    }

    /// A change failed in our store, which ended the round for us: changes of the PG behind it that were not handed to the store yet
    /// must not be carried out without it.
    #[cold]
    fn refuse_queued(&mut self, now: Millis, shard: &mut dyn ShardIndex, pg: PgId) {
        let Self { outputs, ops, .. } = self;
        let mut refused = Vec::new();
        outputs.retain(|output| {
            let Output::Local { tag, .. } = output else { return true };
            let is_behind = ops.get_mut(OpId(*tag)).is_some_and(|op| op.pg == pg && op.class == OpClass::Write);
            refused.extend(is_behind.then_some(*tag));
            !is_behind
        });
        for tag in refused {
            self.handle_local(now, shard, tag, ShardOutcome::Failed(Status::Retry));
        }
    }

    /// The activation record is durable (`ok`), or the state store refused it because the PG has a newer epoch.
    pub fn handle_activated(&mut self, now: Millis, shard: &mut dyn ShardIndex, pg: PgId, epoch: Epoch, ok: bool) {
        self.pg_activated(now, shard, pg, epoch, ok);
        self.start_ready(shard);
    }

    /// Our registration was found in the state store, by a question that was asked at `asked`.
    pub fn handle_registered(&mut self, asked: Millis) {
        self.registered = self.registered.max(asked);
    }

    /// Our registration was withdrawn, whether or not it is renewed: others may have taken our place.
    pub fn handle_unregistered(&mut self) {
        self.registered = 0;
        self.pgs.values_mut().for_each(|pg| pg.unregistered = true);
    }

    /// The time [`Osd::poll_timeout`] named has come.
    pub fn handle_timeout(&mut self, now: Millis, shard: &mut dyn ShardIndex) {
        self.handle_clock(now * 1_000);
        if self.recovery.rest_ends().is_some_and(|end| end <= now) {
            self.recovery_rested();
        }
        if now < self.tick {
            return self.start_ready(shard);
        }
        self.tick = now + TICK_MS;
        for link in self.links.expired(now) {
            self.forget_caller(link);
            self.outputs.push_back(Output::Close(link));
        }
        self.poll_links(now, shard);
        let (objects, bytes) = (self.stats.recovered_objects, self.stats.recovered_bytes);
        self.recovery.tick(now, self.stats.reads + self.stats.writes, objects, bytes);
        self.poll_pgs(now, shard);
        self.poll_scrubs(now, shard);
        self.poll_purge(shard);
        self.report_suspects();
        self.poll_slow(now);
        self.start_ready(shard);
        debug_assert!(self.check_invariants());
    }

    // ---- outputs

    /// Next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Osd::handle_timeout`].
    pub fn poll_timeout(&self) -> Millis {
        self.recovery.rest_ends().map_or(self.tick, |end| end.min(self.tick))
    }

    // ---- queries

    /// Counters for the state store. Space and device errors are the driver's to fill in.
    pub fn stats(&self) -> OsdStats {
        let mut stats = self.stats.clone();
        stats.recovery = self.recovery.rate();
        for pg in self.pgs.values().filter(|pg| pg.is_primary()) {
            if pg.is_active() {
                stats.pgs_active += 1;
                stats.objects_degraded += pg.missing.len() as u64;
            } else {
                stats.pgs_inactive += 1;
            }
        }
        stats
    }

    /// What this OSD has scrubbed and is not in the cluster state yet, as far as it knows: to be written there.
    pub fn unrecorded_scrubs(&self) -> Vec<(PgId, PgScrub)> {
        let led = self.pgs.iter().filter(|(_, pg)| pg.is_primary());
        let done = led.filter_map(|(id, pg)| Some((*id, pg.scrubs.done()?)));
        done.filter(|(id, done)| self.map.scrubbed.get(id) != Some(done)).collect()
    }

    /// How long operations took.
    pub fn latencies(&self) -> &Latencies {
        &self.latencies
    }

    /// States of the PGs this OSD is a member of.
    pub fn pg_summaries(&self) -> Vec<PgSummary> {
        self.pgs.values().map(|pg| pg.summary(self.options.id)).collect()
    }

    /// Client requests held at the moment.
    pub fn held_requests(&self) -> usize {
        self.held.len()
    }

    // ---- inside

    pub(crate) fn send(&mut self, link: LinkId, message: Message) {
        self.outputs.push_back(Output::Send { link, message });
    }

    pub(crate) fn notice(&mut self, text: String) {
        self.outputs.push_back(Output::Notice(text));
    }

    pub(crate) fn warn(&mut self, text: String) {
        self.outputs.push_back(Output::Warning(text));
    }

    /// From a connection that someone made to us. False: not what this caller may say.
    fn handle_from_caller(
        &mut self,
        now: Millis,
        shard: &mut dyn ShardIndex,
        link: LinkId,
        caller: Caller,
        message: Message,
    ) -> bool {
        match (caller, message) {
            (Caller::Unknown { .. }, message) => self.introduce(link, &message),
            (Caller::Client(_) | Caller::Osd(..), Message::Ping) => {
                self.links.grant(link, now);
                self.send(link, Message::Pong { free_bytes: shard.space().free() });
            }
            (Caller::Client(client), Message::Request(request)) => {
                self.handle_request(shard, link, client, request);
            }
            (Caller::Osd(..), Message::SubRequest(request)) => self.handle_sub_request(shard, link, request),
            (Caller::Osd(osd, incarnation), Message::PeerQuery(query)) => {
                self.handle_query(now, shard, link, Member { osd, incarnation }, query);
            }
            (Caller::Osd(..), Message::PeerList(list)) => self.handle_list(shard, link, &list),
            _ => return false,
        }
        true
    }

    /// From a connection that we made to a member of a PG we lead.
    fn handle_from_peer(&mut self, now: Millis, shard: &mut dyn ShardIndex, link: LinkId, message: Message) {
        let Some(out) = self.links.outgoing_by_link(link) else { return };
        let osd = out.target();
        out.heard(now);
        let is_ready = out.ready().is_some();
        let understood = match message {
            Message::Welcome(welcome) if !is_ready => self.handle_welcome(now, shard, link, osd, &welcome),
            Message::Refuse(why) => {
                if out.handle_refusal(why) {
                    self.notice(format!("osd {osd} refused our connection: {why}"));
                }
                false
            }
            _ if !is_ready => false,
            Message::Pong { free_bytes } => {
                out.handle_pong();
                // Who was full is not asked to write, so that nothing else would tell when it is no longer.
                self.free_bytes.insert(osd, free_bytes);
                true
            }
            Message::Deposed(deposed) => {
                self.handle_deposed(now, shard, &deposed);
                true
            }
            Message::SubReply(SubReply { id, outcome, free_bytes }) => {
                self.free_bytes.insert(osd, free_bytes);
                self.handle_sub_reply(now, shard, osd, OpId(id), outcome);
                true
            }
            Message::PeerInfo(info) => {
                self.free_bytes.insert(osd, info.free_bytes);
                self.handle_peer_info(now, shard, osd, info);
                true
            }
            Message::PeerObjects(objects) => {
                self.handle_peer_objects(now, shard, osd, objects);
                true
            }
            _ => false,
        };
        if !understood {
            self.outputs.push_back(Output::Close(link));
            self.handle_closed(now, shard, link);
        }
    }

    /// The OSD at the other end of a connection of ours has introduced itself. False: it is to be closed.
    fn handle_welcome(
        &mut self,
        now: Millis,
        shard: &mut dyn ShardIndex,
        link: LinkId,
        osd: OsdId,
        welcome: &Welcome,
    ) -> bool {
        let Self { links, identity, .. } = self;
        let Some(out) = links.outgoing_by_link(link) else { return false };
        match out.handle_welcome(now, identity, welcome) {
            Ok(introduced) => {
                self.settle_introduction(link, introduced);
                self.peer_ready(now, shard, osd);
                self.report_suspects();
                true
            }
            Err(why) => {
                if out.handle_refusal(why) {
                    self.notice(format!("refused the connection to osd {osd}: {why}"));
                }
                self.send(link, Message::Refuse(why));
                false
            }
        }
    }

    /// A message of somebody who is not introduced yet.
    fn introduce(&mut self, link: LinkId, message: &Message) {
        let Self { links, identity, .. } = self;
        let Some(incoming) = links.incoming.get_mut(&link) else { return };
        match incoming.accepting.handle(identity, message) {
            Accepted::Answer(answer) => self.send(link, answer),
            Accepted::Introduced(introduced) => {
                incoming.caller = match introduced.role {
                    Role::Client(client) => Caller::Client(client),
                    Role::Osd(osd) => Caller::Osd(osd, introduced.incarnation),
                };
                self.settle_introduction(link, introduced);
            }
            Accepted::Refused(why) => {
                let of = match message {
                    Message::Hello(hello) => format!(" of {:?}", hello.role),
                    _ => String::new(),
                };
                self.report_refusal(format!("refused a connection{of}: {why}"));
                self.refuse(link, why);
            }
            Accepted::Left(why) => {
                self.report_refusal(format!("somebody who connected left: {why}"));
                self.outputs.push_back(Output::Close(link));
                self.links.incoming.remove(&link);
            }
        }
    }

    /// Whoever is refused mostly tries again, and again: it is said once.
    fn report_refusal(&mut self, text: String) {
        if self.last_refusal != text {
            self.notice(text.clone());
            self.last_refusal = text;
        }
    }

    fn settle_introduction(&mut self, link: LinkId, introduced: Introduced) {
        if let Some(answer) = introduced.answer {
            self.send(link, answer);
        }
        self.outputs.push_back(Output::Introduced { link, session: introduced.session });
    }

    fn refuse(&mut self, link: LinkId, why: Refusal) {
        self.send(link, Message::Refuse(why));
        self.outputs.push_back(Output::Close(link));
        self.forget_caller(link);
    }

    /// Connects, probes and gives up connections to members.
    pub(crate) fn poll_links(&mut self, now: Millis, shard: &mut dyn ShardIndex) {
        let osds: Vec<_> = self.links.outgoing.keys().copied().collect();
        for osd in osds {
            let address = self.map.osds.get(&osd).map(|state| state.address);
            loop {
                let fresh = self.links.fresh();
                let Some(out) = self.links.outgoing.get_mut(&osd) else { break };
                match out.poll(now, address, fresh) {
                    None => break,
                    Some(LinkAction::Connect(address)) => {
                        self.outputs.push_back(Output::Connect { link: fresh, address });
                    }
                    Some(LinkAction::Ping(link)) => self.send(link, Message::Ping),
                    Some(LinkAction::Close(link)) => {
                        self.outputs.push_back(Output::Close(link));
                        self.peer_lost(now, shard, osd);
                    }
                }
            }
        }
    }

    /// A member answered one of our sub-requests.
    fn handle_sub_reply(
        &mut self,
        now: Millis,
        shard: &mut dyn ShardIndex,
        osd: OsdId,
        id: OpId,
        outcome: ShardOutcome,
    ) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let Some(peer) = self.pgs.get(&op.pg).and_then(|pg| pg.peer_of(osd)) else { return };
        if op.remotes & 1 << peer == 0 {
            return;
        }
        op.remotes &= !(1 << peer);
        let took = self.now_us - op.asked_us;
        self.latencies.member[op.class as usize].add(took);
        op.answered(Answerer::Osd(osd), took);
        self.handle_outcome(now, shard, id, peer, outcome);
    }

    /// An operation's step ended at a peer of its PG, perhaps ourselves.
    fn handle_outcome(
        &mut self,
        now: Millis,
        shard: &mut dyn ShardIndex,
        id: OpId,
        from: usize,
        outcome: ShardOutcome,
    ) {
        let Some(op) = self.ops.get_mut(id) else { return };
        match &op.kind {
            Kind::Client(_) => self.client_step(now, shard, id, from, outcome),
            Kind::Secondary { .. } => self.secondary_finish(shard, id, outcome),
            Kind::Recovery(_) | Kind::Scrub(_) if outcome == ShardOutcome::Failed(Status::Retry) => {
                let pg = op.pg;
                self.pg_fail(now, pg, "a member is in another round");
            }
            Kind::Recovery(_) => self.recovery_step(shard, id, from, outcome),
            Kind::Scrub(_) => self.scrub_step(shard, id, from, outcome),
            Kind::Drop => self.dropped(now, shard, id, &outcome),
            Kind::Background | Kind::Orphan => {
                if op.is_settled() {
                    self.ops.remove(id);
                }
            }
        }
    }

    /// Hands an operation to a peer of the PG: our own store, or over the network.
    pub(crate) fn send_to_peer(&mut self, shard: &dyn ShardIndex, id: OpId, peer: usize, shard_op: ShardOp) {
        let Some(op) = self.ops.get_mut(id) else { return };
        let Some(pg) = self.pgs.get_mut(&op.pg) else { return };
        let mutation = shard_op.is_mutation();
        (op.asked_us, op.class) = (self.now_us, OpClass::of(&shard_op));
        pg.scrubs.changes += u64::from(mutation);
        if peer == pg.own() {
            op.local = if mutation { Local::Mutation } else { Local::Read };
            self.lazy_seen |= shard_op.is_lazy();
            pg.local_mutations += u32::from(mutation);
            let degraded = pg.is_degraded();
            pg.dirty.follow(&shard_op, degraded, |object| shard.head(object).map(|h| h.version).unwrap_or_default());
            self.outputs.push_back(Output::Local { tag: id.0, op: shard_op });
            return;
        }
        op.remotes |= 1 << peer;
        let request = pg.sub_request(id.0, shard_op);
        let to = pg.peers()[peer];
        // Without a connection the PG is about to leave this round, which gives the operation up.
        if let Some(link) = self.links.ready_peer(&to) {
            self.send(link, Message::SubRequest(request));
        }
    }

    /// Reports OSDs that should work with us and cannot be reached, whenever that changes.
    fn report_suspects(&mut self) {
        let suspects = self.unreachable();
        if suspects != self.suspects {
            self.outputs.push_back(Output::Suspect(suspects.iter().copied().collect()));
            self.suspects = suspects;
        }
    }

    /// Whether a run of an OSD has ended for sure.
    pub(crate) fn is_over(&self, pg: PgId, run: Member) -> bool {
        let dead = self.map.pgs.get(&pg).is_some_and(|map| map.dead.contains(&run));
        let was_us = run.osd == self.options.id && run.incarnation != self.options.incarnation;
        dead || was_us
    }

    /// Milliseconds for which a primary of a PG other than `asking` may yet count on us.
    pub(crate) fn lease_left(&self, now: Millis, id: PgId, asking: Member) -> u64 {
        let Some(pg) = self.pgs.get(&id) else { return 0 };
        let last = self.map.activations.get(&id).map_or(&[][..], |last| &last.acting);
        let owed = self.owed_ms(now, pg.scope(), |run| *run == asking || self.is_over(id, *run));
        owed.max(pg.lease_left(now, asking, last, self.options.started, |run| self.is_over(id, run)))
    }

    pub(crate) fn new_op(&mut self, pg: PgId, kind: Kind) -> OpId {
        self.ops.insert(Op::new(self.now_us, pg, kind))
    }

    /// Our own assumptions; always true.
    pub(crate) fn check_invariants(&self) -> bool {
        let clients = self.ops.ids().filter(|(_, op)| matches!(op.kind, Kind::Client(_))).count();
        assert_eq!(clients, self.held.len(), "every client request is held once");
        for (pg, state) in self.pgs.iter() {
            let mutations = self.ops.ids().filter(|(_, op)| op.pg == *pg && op.local == Local::Mutation).count();
            let inherited = self.inherited.values().flatten().filter(|part| *part == pg).count();
            assert_eq!((mutations + inherited) as u32, state.local_mutations, "pg {pg}: local changes are counted");
            assert!(self.rivals(state.scope()).is_empty(), "pg {pg}: an object is in one PG");
        }
        true
    }
}
