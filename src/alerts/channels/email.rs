//! E-mail through one SMTP server: TLS by STARTTLS or from the first byte, never without (R-USE-4).

use std::time::Duration;

use lettre::{
    AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor,
    message::{Mailbox, header::ContentType},
    transport::smtp::{
        Error,
        authentication::Credentials,
        client::{Certificate, Tls, TlsParameters},
    },
};
use zeroize::Zeroizing;

use crate::{
    alerts::{EmailConfig, config::MailTls},
    store::Alert,
};

/// One mail server and who is written to.
pub struct Email {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
    to: Vec<Mailbox>,
}

impl Email {
    /// Errors: a sentence that names the setting; never the password.
    pub fn new(config: &EmailConfig, patience: Duration) -> Result<Self, String> {
        let mailbox = |name: &str, address: &str| {
            let wrong = |_| format!("alerts.email.{name}: {address:?} is no address");
            address.parse::<Mailbox>().map_err(wrong)
        };
        let to = config.to.iter().map(|address| mailbox("to", address));
        let to: Vec<_> = to.collect::<Result<_, _>>()?;
        if to.is_empty() {
            return Err("alerts.email.to names nobody".into());
        }
        let tls = tls(config)?;
        let tls = match config.tls {
            MailTls::Starttls => Tls::Required(tls),
            MailTls::Implicit => Tls::Wrapper(tls),
        };
        let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&config.host)
            .port(config.port)
            .tls(tls)
            .timeout(Some(patience));
        if let Some(username) = &config.username {
            let password = password(config)?;
            transport =
                transport.credentials(Credentials::new(username.clone(), password.to_string()));
        }
        Ok(Self {
            transport: transport.build(),
            from: mailbox("from", &config.from)?,
            to,
        })
    }

    /// Errors: why it did not get there.
    pub async fn send(&self, alert: &Alert) -> Result<(), &'static str> {
        let message = self.message(alert).map_err(|_| "MESSAGE")?;
        match self.transport.send(message).await {
            Ok(_) => Ok(()),
            Err(error) => Err(code(&error)),
        }
    }

    fn message(&self, alert: &Alert) -> Result<Message, lettre::error::Error> {
        let mut message = Message::builder()
            .from(self.from.clone())
            // The same for every attempt, so that a mailbox knows what it has.
            .message_id(Some(format!("<{}@claviger>", alert.id)))
            .subject(format!("[claviger] {} in {}", alert.kind, alert.tenant))
            .header(ContentType::TEXT_PLAIN);
        for to in &self.to {
            message = message.to(to.clone());
        }
        message.body(format!(
            "{}\n\nKind: {}\nTenant: {}\nAbout: {} {}\nRaised: {}\nAlert: {}\n",
            alert.text,
            alert.kind,
            alert.tenant,
            alert.entity,
            alert.entity_id,
            alert.raised_at,
            alert.id,
        ))
    }
}

fn tls(config: &EmailConfig) -> Result<TlsParameters, String> {
    let mut tls = TlsParameters::builder(config.host.clone());
    if let Some(path) = &config.ca_file {
        let wrong =
            |e: &dyn std::fmt::Display| format!("alerts.email.ca_file {}: {e}", path.display());
        let pem = std::fs::read(path).map_err(|e| wrong(&e))?;
        tls = tls.add_root_certificate(Certificate::from_pem(&pem).map_err(|e| wrong(&e))?);
    }
    tls.build().map_err(|e| format!("alerts.email: TLS: {e}"))
}

fn password(config: &EmailConfig) -> Result<Zeroizing<String>, String> {
    let path = config
        .password_file
        .as_ref()
        .ok_or("alerts.email.password_file is required with a username")?;
    let text = std::fs::read_to_string(path)
        .map_err(|e| format!("alerts.email.password_file {}: {e}", path.display()))?;
    let text = Zeroizing::new(text);
    Ok(Zeroizing::new(text.trim_end().to_owned()))
}

/// What went wrong, without the server's words: they may quote the message.
fn code(error: &Error) -> &'static str {
    if error.is_permanent() {
        "SMTP_REFUSED"
    } else if error.is_transient() {
        "SMTP_LATER"
    } else if error.is_timeout() {
        "TIMEOUT"
    } else if error.is_tls() {
        "TLS"
    } else {
        "SMTP_UNREACHABLE"
    }
}
