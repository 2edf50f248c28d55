// A mail server made of smtp-server: it logs who the client is, and stores mail in files.
// Its arguments are the folder for the mail and a file with a certificate and its key.
const crypto = require("node:crypto");
const fs = require("node:fs");
const path = require("node:path");
const { SMTPServer } = require("smtp-server");

const [folder, certificate] = process.argv.slice(2);
const pem = fs.readFileSync(certificate);
const { HOST_NAME, DOMAIN, TRUSTED, XCLIENT, PROXY } = process.env;
// Our how-to has these options.
const [xclient, proxy] = [XCLIENT, PROXY].map((text) => eval(`(${text})`));
const trusted = new Set(TRUSTED.split(" "));

function listen(host, port, options) {
  const server = new SMTPServer({
    name: HOST_NAME,
    key: pem,
    cert: pem,
    authOptional: true,
    disableReverseLookup: true,
    ...options,
    onRcptTo(address, session, done) {
      const isOurs = address.address.endsWith(`@${DOMAIN}`);
      if (isOurs || trusted.has(session.remoteAddress)) return done();
      done(Object.assign(new Error("relaying denied"), { responseCode: 550 }));
    },
    onData(stream, session, done) {
      console.log(`client=${session.remoteAddress} ${session.remotePort}`);
      const file = fs.createWriteStream(path.join(folder, crypto.randomUUID()));
      stream.pipe(file).on("finish", () => done());
    },
  });
  server.on("error", (problem) => console.log(`error: ${problem.message}`));
  return new Promise((resolve) => server.listen(port, host, resolve));
}

Promise.all([
  listen("127.0.0.1", 10725, xclient),
  listen("127.0.0.1", 10726, proxy),
  listen("127.0.0.1", 2500, {}),
  listen("::1", 2500, {}),
]).then(() => console.log("ready"));
