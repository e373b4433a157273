BEGIN TRANSACTION;
CREATE TABLE about (
	schema_version INTEGER NOT NULL
);
INSERT INTO "about" VALUES(1);
CREATE TABLE events (
	job_id VARCHAR(40) NOT NULL, 
	seq INTEGER NOT NULL, 
	event VARCHAR(40) NOT NULL, 
	data TEXT NOT NULL, 
	at FLOAT NOT NULL, 
	PRIMARY KEY (job_id, seq)
);
INSERT INTO "events" VALUES('job_018bcfe568010000000000000001',1,'status','{"status":"queued"}',1.79564251422946691508e+09);
INSERT INTO "events" VALUES('job_018bcfe568020000000000000002',1,'status','{"status":"queued"}',1.79564251423236203196e+09);
INSERT INTO "events" VALUES('job_018bcfe568030000000000000003',1,'status','{"status":"running"}',1.79564251423361778258e+09);
INSERT INTO "events" VALUES('job_018bcfe568040000000000000004',1,'status','{"status":"running"}',1.79564251423496937755e+09);
INSERT INTO "events" VALUES('job_018bcfe568050000000000000005',1,'status','{"status":"running"}',1795642514.23596);
INSERT INTO "events" VALUES('job_018bcfe568060000000000000006',1,'status','{"status":"paused"}',1.79564251423686313631e+09);
INSERT INTO "events" VALUES('job_018bcfe568070000000000000007',1,'status','{"status":"queued"}',1.79564251423728752136e+09);
INSERT INTO "events" VALUES('job_018bcfe568080000000000000008',1,'status','{"status":"queued"}',1.79564251423767018314e+09);
INSERT INTO "events" VALUES('job_018bcfe568090000000000000009',1,'status','{"status":"running"}',1.79564251423865222931e+09);
INSERT INTO "events" VALUES('job_018bcfe5680a000000000000000a',1,'status','{"status":"running"}',1.79564251423908591265e+09);
INSERT INTO "events" VALUES('job_018bcfe5680b000000000000000b',1,'status','{"status":"running"}',1.79564251423947548861e+09);
INSERT INTO "events" VALUES('job_018bcfe5680c000000000000000c',1,'status','{"status":"queued"}',1.79564251423983430857e+09);
INSERT INTO "events" VALUES('job_018bcfe5680d000000000000000d',1,'status','{"status":"queued"}',1.7956425142455246448e+09);
INSERT INTO "events" VALUES('job_018bcfe5680c000000000000000c',2,'status','{"status":"cancelled"}',1.79564251425618696209e+09);
INSERT INTO "events" VALUES('job_018bcfe568090000000000000009',2,'status','{"status":"succeeded"}',1795642514.26127);
INSERT INTO "events" VALUES('job_018bcfe5680a000000000000000a',2,'status','{"status":"succeeded"}',1.79564251426212739947e+09);
INSERT INTO "events" VALUES('job_018bcfe5680b000000000000000b',2,'status','{"status":"failed","problem":{"type":"about:blank","title":"Bad","status":422,"detail":"no such digit"}}',1.79564251426312732691e+09);
INSERT INTO "events" VALUES('job_018bcfe5680e000000000000000e',1,'status','{"status":"running"}',1.79564251426713418959e+09);
INSERT INTO "events" VALUES('job_018bcfe5680e000000000000000e',2,'status','{"status":"queued","reason":"no room"}',1.79564251427213358879e+09);
CREATE TABLE idempotency_keys (
	owner VARCHAR(80) NOT NULL, 
	route VARCHAR(120) NOT NULL, 
	"key" VARCHAR(255) NOT NULL, 
	fingerprint VARCHAR(64) NOT NULL, 
	job_id VARCHAR(40) NOT NULL, 
	created_at FLOAT NOT NULL, 
	PRIMARY KEY (owner, route, "key")
);
INSERT INTO "idempotency_keys" VALUES('ann','POST /v1/samples','a key','ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff','job_018bcfe5680d000000000000000d',1.7956425142456405163e+09);
CREATE TABLE jobs (
	id VARCHAR(40) NOT NULL, 
	kind VARCHAR(40) NOT NULL, 
	owner VARCHAR(80) NOT NULL, 
	status VARCHAR(12) NOT NULL, 
	model VARCHAR(120) NOT NULL, 
	version VARCHAR(40) NOT NULL, 
	method VARCHAR(40) NOT NULL, 
	options TEXT NOT NULL, 
	request TEXT NOT NULL, 
	request_id VARCHAR(120) NOT NULL, 
	seed BIGINT NOT NULL, 
	rows INTEGER NOT NULL, 
	items BLOB, 
	items_blob VARCHAR(200), 
	per INTEGER NOT NULL, 
	next_row INTEGER NOT NULL, 
	state BLOB, 
	progress FLOAT NOT NULL, 
	token INTEGER NOT NULL, 
	lease_owner VARCHAR(80), 
	lease_until FLOAT, 
	shared BOOLEAN NOT NULL, 
	alone BOOLEAN NOT NULL, 
	attempts INTEGER NOT NULL, 
	turn FLOAT NOT NULL, 
	problem TEXT, 
	created_at FLOAT NOT NULL, 
	started_at FLOAT, 
	finished_at FLOAT, 
	expired BOOLEAN NOT NULL, 
	not_before FLOAT, 
	blocked_since FLOAT, 
	blocked_reason TEXT, 
	blocked_bytes BIGINT, 
	PRIMARY KEY (id)
);
INSERT INTO "jobs" VALUES('job_018bcfe568010000000000000001','samples','ann','queued','vae-mnist','1','sample','{"a":1}','{"model":"vae-mnist","count":2}','r1',7,2,NULL,NULL,1,0,NULL,0.0,0,NULL,NULL,0,0,0,1700000001.0,NULL,1700000001.0,NULL,NULL,0,NULL,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES('job_018bcfe568020000000000000002','encodings','bob','queued','vae-mnist','1','encode','{"a":1}','{"model":"vae-mnist","count":2}','r2',7,2,X'81A6696D61676573',NULL,2,0,NULL,0.0,0,NULL,NULL,0,0,0,1700000002.0,NULL,1700000002.0,NULL,NULL,0,NULL,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES('job_018bcfe568030000000000000003','samples','ann','running','vae-mnist','1','sample','{"a":1}','{"model":"vae-mnist","count":2}','r3',7,2,NULL,NULL,1,0,NULL,0.0,3,'host-1-abc',1700000000.0,1,0,0,1700000003.0,NULL,1700000003.0,1700000000.0,NULL,0,NULL,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES('job_018bcfe568040000000000000004','samples','ann','running','vae-mnist','1','sample','{"a":1}','{"model":"vae-mnist","count":2}','r4',7,10,NULL,NULL,1,4,X'80',0.5,2,NULL,NULL,0,0,0,1700000004.0,NULL,1700000004.0,1700000000.0,NULL,0,NULL,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES('job_018bcfe568050000000000000005','samples','ann','running','vae-mnist','1','sample','{"a":1}','{"model":"vae-mnist","count":2}','r5',7,2,NULL,NULL,1,0,NULL,0.0,3,'host-1-abc',1700000000.0,0,1,2,1700000005.0,NULL,1700000005.0,1700000000.0,NULL,0,NULL,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES('job_018bcfe568060000000000000006','training','ann','paused','mine','','training','{}','{"family":"vae","dataset":"digits","recipe":{"z":1,"a":2}}','r6',7,1,NULL,NULL,1,0,NULL,0.0,1,NULL,NULL,0,0,0,1700000006.0,NULL,1700000006.0,NULL,NULL,0,NULL,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES('job_018bcfe568070000000000000007','training','bob','queued','yours','','training','{}','{"model":"vae-mnist","count":2}','r7',7,1,NULL,NULL,1,0,NULL,0.0,0,NULL,NULL,0,0,0,1700000007.0,NULL,1700000007.0,NULL,NULL,0,NULL,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES('job_018bcfe568080000000000000008','import','ann','queued','mine','','import','{}','{"model":"vae-mnist","count":2}','r8',7,1,NULL,NULL,1,0,NULL,0.0,0,NULL,NULL,0,0,0,1700000008.0,NULL,1700000008.0,NULL,NULL,0,NULL,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES('job_018bcfe568090000000000000009','samples','ann','succeeded','vae-mnist','1','sample','{"a":1}','{"model":"vae-mnist","count":2}','r9',7,2,NULL,NULL,1,2,NULL,1.0,3,NULL,NULL,0,0,0,1700000009.0,NULL,1700000009.0,1700000000.0,1.79564251426033520695e+09,0,NULL,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES('job_018bcfe5680a000000000000000a','samples','ann','succeeded','vae-mnist','1','sample','{"a":1}','{"model":"vae-mnist","count":2}','r10',7,2,NULL,NULL,1,2,NULL,1.0,3,NULL,NULL,0,0,0,1700000010.0,NULL,1700000010.0,1700000000.0,1.79564251426169943807e+09,0,NULL,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES('job_018bcfe5680b000000000000000b','samples','ann','failed','vae-mnist','1','sample','{"a":1}','{"model":"vae-mnist","count":2}','r11',7,2,NULL,NULL,1,0,NULL,0.0,3,NULL,NULL,0,0,0,1700000011.0,'{"type":"about:blank","title":"Bad","status":422,"detail":"no such digit"}',1700000011.0,1700000000.0,1.79564251426237845416e+09,0,NULL,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES('job_018bcfe5680c000000000000000c','samples','ann','cancelled','vae-mnist','1','sample','{"a":1}','{"model":"vae-mnist","count":2}','r12',7,2,NULL,NULL,1,0,NULL,0.0,0,NULL,NULL,0,0,0,1700000012.0,NULL,1700000012.0,NULL,1.79564251425451231001e+09,0,NULL,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES('job_018bcfe5680d000000000000000d','samples','ann','queued','vae-mnist','1','sample','{"a":1}','{"model":"vae-mnist","count":2}','r13',7,2,NULL,NULL,1,0,NULL,0.0,0,NULL,NULL,0,0,0,1700000013.0,NULL,1700000013.0,NULL,NULL,0,NULL,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES('job_018bcfe5680e000000000000000e','samples','ann','queued','vae-mnist','1','sample','{"a":1}','{"model":"vae-mnist","count":2}','r14',7,2,NULL,NULL,1,0,NULL,0.0,4,NULL,NULL,0,0,0,1700000014.0,NULL,1700000014.0,1700000000.0,NULL,0,1.79564251526996183395e+09,1.79564251426996183396e+09,'no room',1000);
CREATE TABLE owner_turns (
	queue VARCHAR(20) NOT NULL, 
	owner VARCHAR(80) NOT NULL, 
	claimed_at FLOAT NOT NULL, 
	PRIMARY KEY (queue, owner)
);
INSERT INTO "owner_turns" VALUES('inference','bob',0.0);
INSERT INTO "owner_turns" VALUES('auxiliary','ann',0.0);
INSERT INTO "owner_turns" VALUES('training','ann',0.0);
INSERT INTO "owner_turns" VALUES('inference','ann',0.0);
INSERT INTO "owner_turns" VALUES('training','bob',0.0);
CREATE TABLE parts (
	job_id VARCHAR(40) NOT NULL, 
	first INTEGER NOT NULL, 
	data BLOB, 
	blob VARCHAR(200), 
	PRIMARY KEY (job_id, first)
);
INSERT INTO "parts" VALUES('job_018bcfe568090000000000000009',0,X'696E6C696E65',NULL);
INSERT INTO "parts" VALUES('job_018bcfe5680a000000000000000a',0,NULL,'jobs/job_018bcfe5680a000000000000000a/3-0');
CREATE TABLE resource_changes (
	count BIGINT NOT NULL
);
INSERT INTO "resource_changes" VALUES(1);
CREATE TABLE resources (
	kind VARCHAR(12) NOT NULL, 
	name VARCHAR(120) NOT NULL, 
	owner VARCHAR(80) NOT NULL, 
	shared BOOLEAN NOT NULL, 
	created_at FLOAT NOT NULL, 
	PRIMARY KEY (kind, name)
);
INSERT INTO "resources" VALUES('model','mine','ann',1,1.7956425142861349583e+09);
CREATE INDEX jobs_finished ON jobs (finished_at);
CREATE INDEX jobs_turn ON jobs (status, turn);
CREATE INDEX jobs_owner ON jobs (owner, id);
CREATE INDEX jobs_owner_turn ON jobs (owner, status, turn);
COMMIT;
