// Takes mail for our domain from anybody and for others from listed clients, and stores it.
const crypto = require("node:crypto");
const fs = require("node:fs");
const path = require("node:path");

const { LAB_FOLDER, LAB_DOMAIN, LAB_TRUSTED } = process.env;
const trusted = new Set(LAB_TRUSTED.split(" "));

exports.hook_mail = (next) => next(OK);

exports.hook_rcpt = (next, connection, [recipient]) => {
  const isOurs = recipient.host === LAB_DOMAIN;
  if (isOurs || trusted.has(connection.remote.ip)) return next(OK);
  next(DENY, "relaying denied");
};

exports.hook_queue = (next, connection) => {
  const { ip, port } = connection.remote;
  connection.loginfo(this, `client=${ip} ${port}`);
  const file = fs.createWriteStream(path.join(LAB_FOLDER, crypto.randomUUID()));
  file.on("finish", () => next(OK));
  connection.transaction.message_stream.pipe(file);
};
