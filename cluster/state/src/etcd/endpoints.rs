//! The servers of an etcd cluster: which one to ask, when to ask another one, and what may be asked twice.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Response, Status};

use super::config::EtcdConfig;
use super::fault::{Fault, fault_of};
use crate::convert::advice;
use crate::error::{StateError, StateErrorKind};
use crate::pb;
use crate::pb::auth_client::AuthClient;

/// How long making a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a connection with a watch on it is tested. etcd closes connections that do it more often than every 5 s.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// How long the answer may take.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time one attempt to read may take before another endpoint is asked.
const READ_ATTEMPT_MAX: Duration = Duration::from_secs(2);
/// Waiting time between rounds over all endpoints.
const ROUND_PAUSE: Duration = Duration::from_millis(100);
/// Rounds in which nobody could be reached at all; a server that is there but cannot serve is asked until the time is up.
const ROUNDS_UNREACHED_MAX: usize = 3;

/// A connection that names the user.
pub(super) type Connection = InterceptedService<Channel, Token>;

/// Adds the user's token to each request.
#[derive(Clone)]
pub(super) struct Token(Option<MetadataValue<Ascii>>);

impl tonic::service::Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("token", token.clone());
        }
        Ok(request)
    }
}

/// Whether a request may be carried out twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Reads, and writes that mean the same when done again.
    Harmless,
    /// Everything else: after a broken connection the caller has to decide.
    Harmful,
}

/// All endpoints of one cluster.
pub(super) struct Endpoints {
    config: EtcdConfig,
    channels: Vec<(Uri, Channel)>,
    current: AtomicUsize,
    token: Mutex<Option<MetadataValue<Ascii>>>,
}

impl Endpoints {
    /// Prepares connections, which are made when they are needed. Must be called in the runtime that will use them.
    pub(super) fn new(config: EtcdConfig) -> Result<Self, StateError> {
        let tls =
            config.uris()?.iter().any(|uri| uri.scheme_str() == Some("https")).then(|| config.tls()).transpose()?;
        let mut channels = Vec::new();
        for uri in config.uris()? {
            let mut endpoint = Endpoint::from(uri.clone())
                .connect_timeout(CONNECT_TIMEOUT)
                .http2_keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_TIMEOUT)
                .tcp_nodelay(true);
            if let Some(tls) = tls.as_ref().filter(|_| uri.scheme_str() == Some("https")) {
                endpoint = endpoint.tls_config(tls.clone()).map_err(|error| {
                    StateError::invalid(format!("cannot use TLS to {uri}: {error}; check the certificate files"))
                })?;
            }
            channels.push((uri, endpoint.connect_lazy()));
        }
        Ok(Self { config, channels, current: AtomicUsize::new(0), token: Mutex::new(None) })
    }

    /// The endpoints, for messages.
    pub(super) fn location(&self) -> String {
        self.channels
            .iter()
            .map(|(uri, _)| uri.to_string().trim_end_matches('/').to_owned())
            .collect::<Vec<_>>()
            .join(",")
    }

    /// How long a request may take.
    pub(super) fn request_timeout(&self) -> Duration {
        self.config.request_timeout
    }

    /// Prefers the next endpoint from now on.
    pub(super) fn rotate(&self) {
        self.current.fetch_add(1, Ordering::Relaxed);
    }

    /// Carries out a request on the first endpoint that can. `what` says in messages what it is for.
    pub(super) async fn call<R, F>(
        &self,
        what: &str,
        repeat: Repeat,
        request: impl Fn(Connection) -> F,
    ) -> Result<R, StateError>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let deadline = Instant::now() + self.config.request_timeout;
        let mut rounds_unreached = 0;
        loop {
            let mut reached = false;
            let mut last = None;
            for _ in 0..self.channels.len() {
                match self.attempt(what, repeat, deadline, &request).await {
                    Attempt::Done(result) => return result,
                    Attempt::Next { was_reached, error } => {
                        reached |= was_reached;
                        last = Some(error);
                    }
                }
                self.rotate();
            }
            rounds_unreached += usize::from(!reached);
            let give_up = rounds_unreached >= ROUNDS_UNREACHED_MAX || Instant::now() + ROUND_PAUSE >= deadline;
            if let Some(error) = last.filter(|_| give_up) {
                return Err(error);
            }
            sleep(ROUND_PAUSE).await;
        }
    }

    async fn attempt<R, F>(
        &self,
        what: &str,
        repeat: Repeat,
        deadline: Instant,
        request: &impl Fn(Connection) -> F,
    ) -> Attempt<R>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let (uri, channel) = &self.channels[self.current.load(Ordering::Relaxed) % self.channels.len()];
        let token = match self.token(channel, deadline).await {
            Ok(token) => token,
            // Logging in changes nothing, so it can be repeated anywhere.
            Err(status) => return self.judge(what, uri, Repeat::Harmless, &status),
        };
        let until = match repeat {
            Repeat::Harmless => deadline.min(Instant::now() + READ_ATTEMPT_MAX),
            Repeat::Harmful => deadline,
        };
        match timeout_at(until, request(InterceptedService::new(channel.clone(), token))).await {
            Ok(Ok(response)) => Attempt::Done(Ok(response.into_inner())),
            Ok(Err(status)) => self.judge(what, uri, repeat, &status),
            Err(_) => self.judge(what, uri, repeat, &Status::deadline_exceeded("there was no answer in time")),
        }
    }

    fn judge<R>(&self, what: &str, uri: &Uri, repeat: Repeat, status: &Status) -> Attempt<R> {
        let error = |kind| describe(what, uri, status, kind);
        match (fault_of(status), repeat) {
            (Fault::NotSent, _) => Attempt::Next { was_reached: false, error: error(StateErrorKind::Unavailable) },
            (Fault::NotServed, _) | (Fault::Broken, Repeat::Harmless) => {
                Attempt::Next { was_reached: true, error: error(StateErrorKind::Unavailable) }
            }
            (Fault::Token, _) if self.config.credentials.is_some() => {
                *self.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
                Attempt::Next { was_reached: true, error: error(StateErrorKind::Denied) }
            }
            (Fault::Token, _) => Attempt::Done(Err(error(StateErrorKind::Denied))),
            (Fault::Broken, Repeat::Harmful) => Attempt::Done(Err(error(StateErrorKind::Unknown))),
            (Fault::Refused(kind), _) => Attempt::Done(Err(error(kind))),
        }
    }

    /// The user's token, from memory or by logging in.
    async fn token(&self, channel: &Channel, deadline: Instant) -> Result<Token, Status> {
        let Some(credentials) = &self.config.credentials else { return Ok(Token(None)) };
        let known = self.token.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if known.is_some() {
            return Ok(Token(known));
        }
        let request =
            pb::AuthenticateRequest { name: credentials.user.clone(), password: credentials.password.clone() };
        let mut client = AuthClient::new(channel.clone());
        let answer = timeout_at(deadline, client.authenticate(request)).await;
        let answer = answer.map_err(|_| Status::deadline_exceeded("logging in took too long"))??.into_inner();
        let token = answer.token.parse().map_err(|_| Status::internal("the server sent a token that is no text"))?;
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some(token);
        Ok(Token(self.token.lock().unwrap_or_else(PoisonError::into_inner).clone()))
    }
}

enum Attempt<R> {
    Done(Result<R, StateError>),
    Next { was_reached: bool, error: StateError },
}

/// The error for a failed call.
pub(super) fn describe(what: &str, uri: &Uri, status: &Status, kind: StateErrorKind) -> StateError {
    let text = status.message();
    let mut reason = text.strip_prefix("etcdserver: ").unwrap_or(text).to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        reason = error.to_string();
        source = error.source();
    }
    let uri = uri.to_string();
    let uri = uri.trim_end_matches('/');
    StateError::new(kind, format!("cannot {what} in the state store {uri}: {reason}; {}", advice(kind)))
}
